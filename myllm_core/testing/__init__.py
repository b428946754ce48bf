"""Test kits for plugins: subclass a contract in your own tests, and pytest runs all of it.

Needs pytest, which myllm itself doesn't install.
"""

from __future__ import annotations

import pytest

# before their first import: it gives readable failures
pytest.register_assert_rewrite(
    "myllm_core.testing.alone",
    "myllm_core.testing.downloader",
    "myllm_core.testing.engine",
    "myllm_core.testing.session_store",
)

from myllm_core.testing.downloader import DownloaderCase, DownloaderContract  # noqa: E402 - see above
from myllm_core.testing.engine import EngineCase, EngineContract, model_of  # noqa: E402 - see above
from myllm_core.testing.session_store import SessionStoreContract  # noqa: E402 - see above

__all__ = ["DownloaderCase", "DownloaderContract", "EngineCase", "EngineContract", "SessionStoreContract", "model_of"]
