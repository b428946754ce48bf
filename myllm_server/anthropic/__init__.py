"""The Anthropic dialect: ``/v1/messages``, its fields, events, documents and errors over the same runtime."""
