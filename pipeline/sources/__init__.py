"""Input files: `read.read_shard` opens any of them, `inputs` says what a shard is, and each format has a module."""

STAGE = "read"  # the stage of the rows that a reader rejects
