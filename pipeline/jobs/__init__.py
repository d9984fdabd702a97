"""The Beam jobs, one per file."""
