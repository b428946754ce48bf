"""All tests that a session store needs: the kit's."""

import pytest
from myllm_echo.store import MemoryStore

from myllm_core.testing import SessionStoreContract


class TestMemoryStore(SessionStoreContract):
    persists = False

    @pytest.fixture
    def store(self):
        return MemoryStore()
