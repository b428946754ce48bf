"""OpenAI's responses: conversations that the server keeps, each response a turn of a session."""
