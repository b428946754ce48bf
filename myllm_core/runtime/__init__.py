"""The runtime: models in worker processes, used by the CLI, the server and Python programs alike."""
