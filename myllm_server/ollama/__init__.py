"""The Ollama dialect under ``/ollama``, and at the root of a port of its own: lines of JSON over the same runtime."""
