"""The command-line tool ``llm`` with an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.conftest import CAPITAL, WEATHER

pytestmark = pytest.mark.model

MODELS = """
- model_id: mine
  model_name: smollm2
  api_base: {url}
  supports_schema: true
  supports_tools: true
"""


@pytest.fixture
def llm(tmp_path: Path, base_url: str) -> Callable[..., str]:
    """Runs ``llm …`` with a user folder of its own."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=base_url))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_prompts_streamed_and_not_and_a_conversation(llm: Callable[..., str]) -> None:
    how = ("-m", "mine", "-o", "temperature", "0", "-o", "max_tokens", "30")
    answer = llm(*how, "--no-stream", CAPITAL)
    assert len(answer) > 5 and llm(*how, CAPITAL) == answer
    assert llm(*how, "-c", "And of Italy?").strip()


def test_a_schema(llm: Callable[..., str]) -> None:
    made = llm("-m", "mine", "-o", "max_tokens", "80", "--schema", json.dumps(WEATHER), "How warm is it in Paris?")
    assert json.loads(made).keys() == {"city", "unit"}
