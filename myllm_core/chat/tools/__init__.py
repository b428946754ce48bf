"""Tool calls on every TokenEngine: what the model is told, what of its reply is a call, and how a call is forced."""
