"""Models on disk: references, manifests, the store."""
