"""Moving bytes: one hardened HTTP client, resume, hashes, and the built-in downloaders."""
