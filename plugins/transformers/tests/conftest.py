"""Engines on the real test models and on tiny random ones of other kinds, and a way to drive them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from myllm_transformers.engine import TransformersEngine

from myllm_core import Image, Model, Sequence, TokenEngine, TokenOut
from myllm_core.runtime.choose import load_options
from myllm_core.testing import model_of
from myllm_core.types import Sampling

GREEDY = Sampling(temperature=0.0)
SMALL = {"n_ctx": 256, "max_sequences": 4, "n_threads": 1}
_PARTS = ("*.safetensors", "*.json", "*.jinja", "1_Pooling/config.json")


def model_in(folder: Path, format: str = "safetensors") -> Model:
    """A model of a folder's files, the weights first."""
    paths = [path for part in _PARTS for path in sorted(folder.glob(part))]
    return model_of(*paths, format=format, name="test:latest")


@dataclass
class Reply:
    """What a sequence wrote, and the error that ended it, if one did."""

    outs: list[TokenOut] = field(default_factory=list)
    error: Exception | None = None

    @property
    def tokens(self) -> list[int]:
        return [out.token for out in self.outs]

    @property
    def cached(self) -> int:
        return self.outs[0].cached_tokens


class Driver:
    """Adds sequences to an engine, steps it, and cancels each when it has written what was asked for."""

    def __init__(self, engine: TokenEngine) -> None:
        self.engine = engine
        self.replies: dict[int, Reply] = {}
        self._ids = count(1)
        self._left: dict[int, int] = {}

    def start(
        self,
        prompt: str | list[int],
        tokens: int = 12,
        sampling: Sampling = GREEDY,
        logprobs: int | None = 2,
        images: tuple[Image, ...] = (),
    ) -> int:
        ids = self.engine.tokenize(prompt, False) if isinstance(prompt, str) else list(prompt)
        number = next(self._ids)
        self.replies[number], self._left[number] = Reply(), tokens
        self.engine.add(Sequence(number, ids, sampling, tokens, logprobs, images=images))
        return number

    def cancel(self, number: int) -> None:
        self.engine.cancel(number)
        self._left.pop(number, None)

    def step(self) -> list[TokenOut]:
        outs = self.engine.step()
        for out in outs:
            reply = self.replies[out.sequence_id]
            if out.error is not None:
                reply.error = out.error
                del self._left[out.sequence_id]
                continue
            reply.outs.append(out)
            self._left[out.sequence_id] -= 1
            if not self._left[out.sequence_id]:
                self.cancel(out.sequence_id)
        return outs

    def run(self, *prompts: str | list[int], **kwargs: Any) -> list[Reply]:
        return self.finish(*(self.start(prompt, **kwargs) for prompt in prompts))

    def finish(self, *numbers: int) -> list[Reply]:
        for _ in range(5000):
            if not self._left:
                return [self.replies[number] for number in numbers]
            self.step()
        raise AssertionError("the engine doesn't come to an end")

    def text(self, reply: Reply) -> str:
        return b"".join(map(self.engine.piece, reply.tokens)).decode(errors="replace")


Load = Callable[..., Driver]


def load_engine(folder: Path, **options: Any) -> TransformersEngine:
    given = load_options(TransformersEngine, SMALL, options)
    return TransformersEngine.load(model_in(folder), given, lambda fraction: None)


@pytest.fixture
def load() -> Iterator[Load]:
    """Load an engine with options on a folder's model."""
    engines: list[TransformersEngine] = []

    def make(folder: Path, **options: Any) -> Driver:
        engines.append(load_engine(folder, **options))
        return Driver(engines[-1])

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def shared(smollm2_safetensors: Path) -> Iterator[TransformersEngine]:
    engine = load_engine(smollm2_safetensors)
    yield engine
    engine.close()


@pytest.fixture
def driver(shared: TransformersEngine) -> Iterator[Driver]:
    """A driver of an engine that the tests of a file share."""
    made = Driver(shared)
    yield made
    for number in list(made.replies):
        made.cancel(number)


@pytest.fixture(scope="session")
def letters() -> dict[str, Any]:
    """A ``tokenizer.json`` with a token for each byte, for models without sense."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown} | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": 256, "content": "</s>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {names[byte]: byte for byte in range(256)}, "merges": []},
    }


@pytest.fixture
def tiny(tmp_path: Path, letters: dict[str, Any]) -> Callable[..., Path]:
    """Writes a model of random weights by transformers' own classes: right in form, without sense."""

    def make(config: Any, **more: Any) -> Path:
        import torch
        import transformers

        torch.manual_seed(7)
        auto = transformers.AutoModelForCausalLM if more.pop("writes", True) else transformers.AutoModel
        model = auto.from_config(config)
        with torch.no_grad():  # as they are made, small weights make all logits nearly alike
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(8)
        model.save_pretrained(tmp_path / "tiny")
        (tmp_path / "tiny" / "tokenizer.json").write_text(json.dumps(letters))
        (tmp_path / "tiny" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        return tmp_path / "tiny"

    return make
