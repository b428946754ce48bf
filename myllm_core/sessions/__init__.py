"""Sessions: the SQLite store and the rules of a conversation."""
