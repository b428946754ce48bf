"""The kit's tests of a session store."""

import pytest
from myllm_jsonfiles.store import JsonFilesStore

from myllm_core.testing import SessionStoreContract


class TestJsonFilesStore(SessionStoreContract):
    @pytest.fixture
    def open_store(self, tmp_path):
        return lambda: JsonFilesStore.open("", tmp_path)
