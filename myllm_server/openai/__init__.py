"""The OpenAI dialect under ``/v1``: its fields, frames, documents and errors over the same runtime."""
