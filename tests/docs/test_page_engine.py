"""The engine of docs/PLUGINS.md on a backend of logits: as it stands on the page, it keeps the whole contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.kit import run_kit, write_site

PAGE = Path(__file__).parents[2] / "docs" / "PLUGINS.md"
TESTS = """
import pytest
from myllm_pairs import PairsEngine
from myllm_core.testing import EngineCase, EngineContract, model_of

class TestPairs(EngineContract):
    @pytest.fixture
    def case(self, tmp_path):
        text = tmp_path / "weights.txt"
        text.write_text("It was the best of times, it was the worst of times, it was the age of wisdom. " * 3)
        return EngineCase(PairsEngine, model_of(text, format="text"), {"n_ctx": 400})
"""


@pytest.fixture
def code() -> str:
    """The plugin, from the page."""
    text = PAGE.read_text(encoding="utf-8").partition("### A backend of logits\n")[2]
    found = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_it_takes_less_than_a_hundred_lines(code: str) -> None:
    assert "hookimpl" in code and len(code.splitlines()) < 100


def test_it_passes_the_kit(code: str, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", {"myllm_pairs": code}, test_pairs=TESTS)
    results = run_kit(site, "test_pairs.py")
    assert {key: value for key, value in results.items() if value[0] not in ("passed", "skipped")} == {}
    ran = {test for (_, test), (outcome, _) in results.items() if outcome == "passed"}
    assert len(ran) > 45
    assert {
        "test_a_reply_follows_its_schema",
        "test_a_seed_repeats_a_reply_in_a_batch",
        "test_a_worker_and_its_children_end_with_the_parent",
        "test_the_context_can_be_filled_and_one_token_more_is_refused",
    } <= ran
