"""What llama.cpp writes with the test model's 32-bit weights, recorded: every engine is held to it, in any environment.

`python -m support.greedy FILE.gguf` in `tests/` records it again, from the file of the fixture `smollm2_f32_gguf`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from myllm_cli.comparison import PROMPTS
from myllm_core import ChatRequest, Message, Sampling, Sequence, TokenEngine, TokenOut
from myllm_core.chat.pipeline import Preparer, all_pieces

RECORD = Path(__file__).with_name("smollm2_greedy.json")
TOKENS = 32
ODD = ("Grüße 漢字 👋🏽 1234  x\n\n<|im_end|>", "def f(x):\n\treturn x + 10**3", "\u00a0 don't  \r\n")
"""Texts whose prompts only have to have the same tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of a prompt and of a greedy answer, which goes on behind its end.

    ``logprobs`` are those of the likeliest token, ``margins`` how far the second one is behind it.
    """

    text: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    margins: list[float]


def recorded() -> dict[str, Any]:
    """The record: ``pieces`` is a hash of the vocabulary, ``prompts`` the tokens of odd texts, ``answers``."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return {**found, "answers": [Answer(**one) for one in found["answers"]]}


def prompt(engine: TokenEngine, text: str) -> list[int]:
    """The tokens of a conversation of one message."""
    preparer = Preparer(engine.facts, engine.tokenize, lambda: all_pieces(engine))
    return preparer.prepare(ChatRequest((Message("user", text),))).tokens


def pieces_hash(engine: TokenEngine) -> str:
    """A hash of the bytes of every token."""
    return hashlib.sha256(b"".join(b"%d %b\n" % (len(piece), piece) for piece in all_pieces(engine))).hexdigest()


def write(engine: TokenEngine, prompts: Seq[list[int]], tokens: int = TOKENS) -> list[list[TokenOut]]:
    """Greedy answers, as many side by side as the engine runs."""
    found: list[list[TokenOut]] = [[] for _ in prompts]
    waiting, running = list(range(len(prompts))), set[int]()
    while waiting or running:
        while waiting and len(running) < engine.max_sequences:
            number = waiting.pop(0)
            engine.add(Sequence(number, prompts[number], Sampling(temperature=0.0), tokens, logprobs=2))
            running.add(number)
        for out in engine.step():
            assert out.error is None, out.error
            if out.sequence_id not in running:  # the rest of what a grammar or a guess brought with its last token
                continue
            found[out.sequence_id].append(out)
            if len(found[out.sequence_id]) == tokens:
                engine.cancel(out.sequence_id)
                running.remove(out.sequence_id)
    return found


def assert_prompts_agree(engine: TokenEngine) -> None:
    """The vocabulary and every prompt have the recorded tokens."""
    known = recorded()
    assert pieces_hash(engine) == known["pieces"]
    for text, tokens in zip(ODD, known["prompts"], strict=True):
        assert prompt(engine, text) == tokens
    for answer in known["answers"]:
        assert prompt(engine, answer.text) == answer.prompt


def assert_answers_agree(engine: TokenEngine, close: float) -> None:
    """Every answer has the recorded tokens, but for those after a choice between two that rounding can't tell apart.

    ``close`` is what rounding may change of a log probability.
    """
    known: list[Answer] = recorded()["answers"]
    for answer, outs in zip(known, write(engine, [answer.prompt for answer in known]), strict=True):
        for place, out in enumerate(outs):
            margin = out.top[0][1] - out.top[1][1]
            assert abs(out.top[0][1] - answer.logprobs[place]) < close, (answer.text, place)
            if out.token != answer.tokens[place]:
                assert max(margin, answer.margins[place]) < close, (answer.text, place)
                break


def _record(engine: TokenEngine) -> dict[str, Any]:
    prompts = [prompt(engine, text) for text in PROMPTS]
    answers = [
        Answer(
            text,
            tokens,
            [out.token for out in outs],
            [round(out.top[0][1], 4) for out in outs],
            [round(out.top[0][1] - out.top[1][1], 4) for out in outs],
        )
        for text, tokens, outs in zip(PROMPTS, prompts, write(engine, prompts), strict=True)
    ]
    return {
        "pieces": pieces_hash(engine),
        "prompts": [prompt(engine, text) for text in ODD],
        "answers": [asdict(answer) for answer in answers],
    }


def main() -> None:
    from myllm_llamacpp.engine import LlamaCppEngine

    from myllm_core.testing import EngineCase, model_of

    options = {"n_ctx": 512, "n_parallel": 1, "n_threads": 1, "cache_disk": 0, "type_k": "f32", "type_v": "f32"}
    engine = EngineCase(LlamaCppEngine, model_of(Path(sys.argv[1]), format="gguf"), options).load()
    assert isinstance(engine, TokenEngine)
    text = json.dumps(_record(engine), ensure_ascii=False, indent=1)
    text = re.sub(r"\n\s+\]", "]", re.sub(r"(?<=[\[,])\n\s+(?=-?\d)", " ", text)).replace("[ ", "[")
    RECORD.write_text(text + "\n", encoding="utf-8")
    engine.close()


if __name__ == "__main__":
    main()
