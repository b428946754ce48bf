"""The HTTP server: HTTP shapes <-> core types, nothing else."""
