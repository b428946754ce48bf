"""The command line: terminal <-> core types, nothing else."""
