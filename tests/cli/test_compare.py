"""``compare``: how far answers agree, and how it is told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from myllm_cli.compare import _check_plot
from myllm_cli.comparison import Answer, Measured, differences
from myllm_core.errors import InvalidRequest
from myllm_core.types import PositionLogprobs, TokenLogprob, Usage

from .conftest import Myllm


def answer(text: str, *logprobs: float, prompt: list[int] | None = None, runner_up: float = -3.0) -> Answer:
    """An answer with a word for each token."""
    words = text.split()
    values = logprobs or (-0.5,) * len(words)
    positions = [
        PositionLogprobs(
            TokenLogprob(word, word.encode(), value),
            (TokenLogprob(word, word.encode(), value), TokenLogprob("x", b"x", runner_up)),
        )
        for word, value in zip(words, values, strict=True)
    ]
    return Answer(prompt, text, positions, Usage(3, len(words)), 0.1, 1.1)


def measured(*answers: Answer) -> Measured:
    return Measured("m:latest", "e", "gguf", "Q4_1", 1.0, 10, list(answers))


def test_the_first_token_that_differs_is_found_with_what_the_reference_thought() -> None:
    one = answer("a b c d", -0.1, -0.2, -0.3, -0.4, prompt=[1, 2], runner_up=-0.35)
    two = answer("a b X d", -0.1, -0.25, -0.3, -0.4, prompt=[1, 2])
    [found] = differences(measured(one), measured(two))
    assert (found.agreed, found.length, found.expected, found.found, found.same_prompt) == (2, 4, "c", "X", True)
    assert found.margin == pytest.approx(0.05) and not found.whole
    assert found.logprobs == (0.0, pytest.approx(0.05))


def test_an_answer_that_ends_early_differs_where_it_ends() -> None:
    [found] = differences(measured(answer("a b c", prompt=[1])), measured(answer("a b", prompt=[2])))
    assert (found.agreed, found.length, found.expected, found.found, found.same_prompt) == (2, 3, "c", "(end)", False)


def test_answers_without_tokens_are_compared_by_words() -> None:
    [found] = differences(measured(Answer(None, "a b c")), measured(answer("a b d")))
    assert (found.agreed, found.length, found.same_prompt, found.margin) == (2, 3, None, None)
    [same] = differences(measured(Answer(None, "a b")), measured(Answer(None, "a b")))
    assert same.whole and same.logprobs == ()


def test_two_models_are_compared(with_echo: Myllm) -> None:
    assert with_echo("pull", "echo", "--name", "second").returncode == 0
    done = with_echo("compare", "echo", "second", "--prompt", "one two three")
    assert done.returncode == 0, done.stderr
    header, first, second = done.stdout.splitlines()
    assert header.split()[:3] == ["MODEL", "ENGINE", "QUANT"]
    assert first.startswith("echo:latest") and "(reference)" in first
    assert "1 of 1, least 3 tokens" in second and "not shown" in second


def test_json_and_a_picture(with_echo: Myllm, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    arguments = ("compare", "echo", "echo", "--prompt", "a", "--prompt", "b c", "--json", "--plot", str(picture))
    done = with_echo(*arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["prompts"] == ["a", "b c"] and [case["engine"] for case in found["cases"]] == ["echo", "echo"]
    assert [one["agreed"] for one in found["cases"][1]["answers"]] == [1, 2]
    assert found["cases"][0]["tokens_per_second"] >= 0 and found["cases"][0]["first_token_seconds"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_told_before_anything_is_loaded(with_echo: Myllm, tmp_path: Path) -> None:
    for arguments, code, said in (
        (("echo",), 2, "nothing to compare"),
        (("echo", "nobody"), 3, "nobody"),
        (("echo", "--engine", "echo", "--engine", "llamacpp"), 7, "llamacpp"),
        (("echo", "echo", "--plot", str(tmp_path / "picture.txt")), 2, ".png"),
        (("echo", "echo", "--plot", str(tmp_path / "nowhere" / "picture.png")), 2, "no file can be written there"),
    ):
        done = with_echo("compare", *arguments)
        assert done.returncode == code and said in done.stderr and done.stdout == ""


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=r"myllm\[plot\]"):
        _check_plot(Path("a.png"))


@pytest.mark.model
def test_a_real_model_agrees_with_itself(myllm: Myllm, smollm2_gguf: Path) -> None:
    assert myllm("pull", str(smollm2_gguf), "--name", "smol").returncode == 0
    arguments = ("--prompt", "What is the capital of France?", "--tokens", "8", "--load-option", "n_ctx=512", "--json")
    done = myllm("compare", "smol", "smol", *arguments, timeout=110)
    assert done.returncode == 0, done.stderr
    one, two = (case["answers"][0] for case in json.loads(done.stdout)["cases"])
    assert one["text"] == two["text"] != "" and two["same_prompt"] is True and len(two["prompt_tokens"]) > 10
    assert two["agreed"] == two["length"] == 8
    assert json.loads(done.stdout)["cases"][1]["logprob_gap"]["most"] < 0.5
