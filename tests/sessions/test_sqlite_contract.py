"""The SQLite store keeps the contract of every session store."""

from __future__ import annotations

from pathlib import Path

import pytest

from myllm_core.sessions.sqlite import SQLiteStore
from myllm_core.testing import SessionStoreContract
from myllm_core.testing.session_store import OpenStore


class TestSQLiteStore(SessionStoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SQLiteStore.open("", tmp_path)
