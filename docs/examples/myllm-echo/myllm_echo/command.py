"""A command that a plugin adds to ``myllm``."""


def shout(text: str) -> None:
    """Print TEXT in capitals."""
    print(text.upper())
