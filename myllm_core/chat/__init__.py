"""The chat pipeline: messages to tokens, tokens to events, the same for every TokenEngine."""
