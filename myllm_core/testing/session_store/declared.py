"""What a store says of itself, and what it brings in and prints."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

from collections.abc import Iterator

import pytest

from myllm_core.offers import CHECKS
from myllm_core.session_store import SessionStore
from myllm_core.testing.alone import Look, look, plugin_of
from myllm_core.testing.session_store.given import said, turn

_PRINTS = "standard output belongs to the answer; log, or print to standard error"


class DeclaredTests:
    """Class data, the import of the plugin, and standard output."""

    @pytest.fixture(scope="class")
    @classmethod
    def looks(cls) -> Iterator[list[Look]]:
        """What the tests of one class share."""
        yield []

    @pytest.fixture
    def alone(self, store: SessionStore, looks: list[Look]) -> Look:
        """What was seen of the plugin in a fresh process."""
        if not looks:
            looks.append(look(plugin_of("session_stores", type(store)), "session_stores", type(store)))
        return looks[0]

    def test_the_class_data_are_usable(self, store: SessionStore) -> None:
        assert CHECKS["session_stores"](type(store)) == ""

    def test_importing_the_plugin_is_light(self, alone: Look) -> None:
        facts = alone.expect()
        brought = set(facts["heavy_after_import"]) - set(facts["heavy_before"])
        assert not brought, f"importing the plugin imports {', '.join(sorted(brought))}; import it inside open"

    def test_the_plugin_prints_nothing_when_it_is_asked(self, alone: Look) -> None:
        alone.expect()
        assert alone.printed == "", _PRINTS

    def test_nothing_is_printed(self, store: SessionStore, capfd: pytest.CaptureFixture[str]) -> None:
        store.create("s")
        tip = store.append("s", turn("question", "answer"), parent=None, key="1")[-1].id
        store.append("s", [said("question")], parent=tip, key="2")
        store.search("question")
        store.import_(store.export("s"), "copy")
        store.delete("s")
        store.close()
        assert capfd.readouterr().out == "", _PRINTS
