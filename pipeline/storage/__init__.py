"""Files of the pipeline: commit records, fingerprints, the annotation format, file systems and disks."""
