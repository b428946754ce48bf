"""Test kits for plugins: subclass a contract in your own tests, and pytest runs all of it.

Needs pytest, which myllm itself doesn't install.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "myllm_core.testing.session_store"
)  # before its first import: it gives readable failures

from myllm_core.testing.session_store import SessionStoreContract  # noqa: E402 - see above

__all__ = ["SessionStoreContract"]
