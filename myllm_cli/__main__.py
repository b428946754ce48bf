"""``python -m myllm_cli`` is ``myllm``."""

from myllm_cli.main import main

if __name__ == "__main__":
    main()
