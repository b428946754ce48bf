"""Engines on the real test model and on tiny random ones of other kinds, and a way to drive them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core import Image, Manifest, Model, ModelFile, Sequence, TokenOut
from myllm_core.types import Sampling

GREEDY = Sampling(temperature=0.0)
# One thread: llama.cpp's threads spin while they wait for each other, which takes ages beside other programs.
SMALL = {"n_ctx": 2048, "n_threads": 1}
TOLERANCE = 0.02
"""Of log probabilities."""


Prompt = str | list[int] | tuple[str | Image, ...]
"""Text, token ids, or texts and images one after the other."""


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


def assert_same(reply: Reply, other: Reply, tolerance: float = TOLERANCE) -> None:
    """Both wrote the same, but for a choice between two tokens that floating point can't tell apart.

    In a unified cache other sequences change the order of sums, and so the last digits; a 4-bit model rounds these to
    tenths of a log probability.
    """
    assert (reply.error, other.error) == (None, None)
    for one, two in zip(reply.outs, other.outs, strict=True):
        if one.token != two.token:
            margins = [out.top[0][1] - out.top[1][1] for out in (one, two)]
            assert min(margins) < tolerance, f"{reply.tokens} is not {other.tokens}"
            return
        assert abs(one.logprob - two.logprob) < tolerance


class Driver:
    """Adds sequences to an engine, steps it, and cancels each when it has written what was asked for."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.engine = engine
        self.replies: dict[int, Reply] = {}
        self._ids = count(1)
        self._left: dict[int, int] = {}

    def start(
        self,
        prompt: Prompt,
        tokens: int = 16,
        sampling: Sampling = GREEDY,
        logprobs: int | None = 2,
    ) -> int:
        ids, images = self.tokens(prompt)
        number = next(self._ids)
        self.replies[number], self._left[number] = Reply(), tokens
        self.engine.add(Sequence(number, ids, sampling, tokens, logprobs, images=images))
        return number

    def tokens(self, prompt: Prompt) -> tuple[list[int], tuple[Image, ...]]:
        """Token ids of a prompt, and the images that have some of them."""
        if isinstance(prompt, str):
            return self.engine.tokenize(prompt, False), ()
        if isinstance(prompt, list):
            return list(prompt), ()
        ids = []
        for part in prompt:
            ids += self.engine.tokenize(part, False) if isinstance(part, str) else self.engine.image_tokens(part)
        return ids, tuple(part for part in prompt if isinstance(part, Image))

    def cancel(self, number: int) -> None:
        self.engine.cancel(number)
        self._left.pop(number, None)

    @property
    def running(self) -> int:
        return len(self._left)

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

    def finish(self) -> None:
        for _ in range(20_000):
            if not self._left:
                return
            self.step()
        raise AssertionError("the engine doesn't come to an end")

    def run(self, *prompts: Prompt, **kwargs: Any) -> list[Reply]:
        numbers = [self.start(prompt, **kwargs) for prompt in prompts]
        self.finish()
        return [self.replies[number] for number in numbers]

    def text(self, reply: Reply) -> str:
        return b"".join(map(self.engine.piece, reply.tokens)).decode(errors="replace")


def installed(path: Path, sha256: str = "") -> Model:
    """A model folder's manifest, as the store would give it; without a hash, nothing of it is saved to disk."""
    return Model(Manifest("test:latest", "gguf", (ModelFile(path.name, path.stat().st_size, sha256),)), path.parent)


def forget_all(engine: LlamaCppEngine) -> None:
    """Leave nothing cached."""
    assert engine._scheduler is not None
    while engine._scheduler.slots.evict():
        pass
    engine._scheduler.slots.states.clear()


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    return assert_same


Load = Callable[..., Driver]


@pytest.fixture
def load(smollm2_gguf: Path) -> Iterator[Load]:
    """Load an engine with options, on the real model or on another file."""
    engines: list[LlamaCppEngine] = []

    def make(path: Path = smollm2_gguf, sha256: str = "", **options: Any) -> Driver:
        given = {option.name: option.default for option in LlamaCppEngine.load_options} | SMALL | options
        engines.append(LlamaCppEngine.load(installed(path, sha256), given, lambda fraction: None))
        return Driver(engines[-1])

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def load_once() -> Iterator[Callable[[Path], tuple[Driver, Driver]]]:
    """Two engines of a model: one that is short of everything, one that runs a sequence at a time."""
    made: dict[Path, tuple[LlamaCppEngine, LlamaCppEngine]] = {}

    def get(path: Path) -> tuple[Driver, Driver]:
        if path not in made:
            tight = SMALL | {"n_ctx": 256, "n_batch": 32, "n_parallel": 7}
            single = SMALL | {"n_ctx": 256, "n_parallel": 1}
            one, other = (LlamaCppEngine.load(installed(path), opts, lambda _: None) for opts in (tight, single))
            made[path] = one, other
        for engine in made[path]:
            forget_all(engine)
        return Driver(made[path][0]), Driver(made[path][1])

    yield get
    for engines in made.values():
        for engine in engines:
            engine.close()


@pytest.fixture(scope="module")
def shared(smollm2_gguf: Path) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine.load(installed(smollm2_gguf), SMALL, lambda fraction: None)
    yield engine
    engine.close()


@pytest.fixture
def driver(shared: LlamaCppEngine) -> Iterator[Driver]:
    """A driver of an engine that the tests of a file share; it begins with nothing cached."""
    forget_all(shared)
    made = Driver(shared)
    yield made
    for number in list(made.replies):
        made.cancel(number)


# Output weights are the token embeddings: larger ones make each token predict itself.
_EMBEDDING_SPREAD = 0.05
_TENSORS = 20  # of a tiny llama


class Tiny:
    """Writes model files of a few kilobytes with random weights: right in form, without sense."""

    def __init__(self, path: Path, architecture: str, context: int = 512, parts: int = 1) -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(path, architecture, split_max_tensors=_TENSORS // parts if parts > 1 else 0)
        self.writer.add_context_length(context)
        self._random = np.random.default_rng(7)

    def sizes(self, **values: int) -> None:
        for key, value in values.items():
            self.writer.add_uint32(f"{self.writer.arch}.{key.replace('__', '.')}", value)

    def sentencepiece(self) -> int:
        """A vocabulary of bytes, lower case letters and a few words, with SentencePiece's leading space."""
        types = gguf.TokenType
        tokens = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)]
        tokens += [(f"<0x{byte:02X}>", types.BYTE) for byte in range(256)]
        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        tokens += [(piece, types.NORMAL) for piece in ["▁", *letters, "he", "hel", "lo", "hello", "▁hello"]]
        self.writer.add_tokenizer_model("llama")
        self.writer.add_token_list([text for text, _ in tokens])
        self.writer.add_token_scores([-float(number) for number in range(len(tokens))])
        self.writer.add_token_types([kind for _, kind in tokens])
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        self.writer.add_add_bos_token(True)
        return len(tokens)

    def wordpiece(self) -> int:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁world", "▁cat", "▁sat", "s"]
        self.writer.add_tokenizer_model("bert")
        self.writer.add_token_list(words)
        self.writer.add_token_scores([0.0] * len(words))
        self.writer.add_token_types([3, 2, 3, 3, 1, 1, 1, 1, 1])
        for kind, number in (("padding", 0), ("unknown", 1), ("bos", 2), ("seperator", 3), ("cls", 2)):
            self.writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", number)
        return len(words)

    def tensor(self, name: str, *shape: int, mean: float = 0.0, spread: float = 0.3) -> None:
        self.writer.add_tensor(name, self._random.normal(mean, spread, shape).astype(np.float32))

    def norm(self, *names: str, width: int) -> None:
        for name in names:
            self.tensor(f"{name}.weight", width, mean=1.0, spread=0.1)

    def save(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def tiny_attention(path: Path, architecture: str, window: int = 0, heads: int = 2, parts: int = 1) -> Path:
    """A llama, or a gemma2 whose every other layer looks back ``window`` tokens; in one file or in parts.

    The positions of a qwen2vl have three parts.
    """
    tiny = Tiny(path, architecture, parts=parts)
    words, width = tiny.sentencepiece(), 64
    head = width // heads
    tiny.sizes(embedding_length=width, block_count=2, feed_forward_length=128, attention__head_count=heads,
               attention__head_count_kv=heads, attention__key_length=head, attention__value_length=head,
               rope__dimension_count=head)  # fmt: skip
    tiny.writer.add_layer_norm_rms_eps(1e-5)
    norms = ["attn_norm", "ffn_norm"]
    if window:
        tiny.sizes(attention__sliding_window=window)
        norms += ["post_attention_norm", "post_ffw_norm"]
    tiny.tensor("token_embd.weight", words, width, spread=_EMBEDDING_SPREAD)
    tiny.norm("output_norm", width=width)
    if architecture == "qwen2vl":
        tiny.writer.add_rope_dimension_sections([head // 8, head // 8, head // 4, 0])
    for layer in ("blk.0", "blk.1"):
        tiny.norm(*(f"{layer}.{name}" for name in norms), width=width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tiny.tensor(f"{layer}.{name}.weight", width, width)
            if architecture == "qwen2vl" and name != "attn_output":
                tiny.tensor(f"{layer}.{name}.bias", width)
        tiny.tensor(f"{layer}.ffn_gate.weight", 128, width)
        tiny.tensor(f"{layer}.ffn_up.weight", 128, width)
        tiny.tensor(f"{layer}.ffn_down.weight", width, 128)
    return tiny.save()


def tiny_mamba(path: Path) -> Path:
    """A recurrent model: its sequences can't be cut short."""
    tiny = Tiny(path, "mamba")
    words, width, inner, state, rank, kernel = tiny.sentencepiece(), 64, 128, 16, 4, 4
    tiny.sizes(embedding_length=width, block_count=2, feed_forward_length=0, attention__head_count=0,
               ssm__conv_kernel=kernel, ssm__inner_size=inner, ssm__state_size=state,
               ssm__time_step_rank=rank)  # fmt: skip
    tiny.writer.add_layer_norm_rms_eps(1e-5)
    tiny.tensor("token_embd.weight", words, width, spread=_EMBEDDING_SPREAD)
    tiny.norm("output_norm", width=width)
    for layer in ("blk.0", "blk.1"):
        tiny.norm(f"{layer}.attn_norm", width=width)
        tiny.tensor(f"{layer}.ssm_in.weight", 2 * inner, width)
        tiny.tensor(f"{layer}.ssm_conv1d.weight", inner, kernel)
        tiny.tensor(f"{layer}.ssm_conv1d.bias", inner)
        tiny.tensor(f"{layer}.ssm_x.weight", rank + 2 * state, inner)
        tiny.tensor(f"{layer}.ssm_dt.weight", inner, rank)
        tiny.tensor(f"{layer}.ssm_dt.bias", inner)
        tiny.tensor(f"{layer}.ssm_a", inner, state, mean=-1.0, spread=0.1)
        tiny.tensor(f"{layer}.ssm_d", inner)
        tiny.tensor(f"{layer}.ssm_out.weight", width, inner)
    return tiny.save()


def tiny_bert(path: Path, ranks: bool = False) -> Path:
    """An encoder that only makes embeddings, of at most 32 tokens, or one that only ``ranks``."""
    tiny = Tiny(path, "bert", context=32)
    words, width = tiny.wordpiece(), 64
    tiny.sizes(embedding_length=width, block_count=1, feed_forward_length=128, attention__head_count=2,
               pooling_type=4 if ranks else 1)  # fmt: skip
    tiny.writer.add_token_type_count(2)
    tiny.writer.add_layer_norm_eps(1e-5)
    tiny.writer.add_causal_attention(False)
    tiny.tensor("token_embd.weight", words, width)
    tiny.tensor("token_types.weight", 2, width)
    tiny.tensor("position_embd.weight", 32, width)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tiny.norm(name, width=width)
        tiny.tensor(f"{name}.bias", width)
    for name, out, into in (
        ("attn_q", width, width), ("attn_k", width, width), ("attn_v", width, width), ("attn_output", width, width),
        ("ffn_up", 128, width), ("ffn_down", width, 128),
    ):  # fmt: skip
        tiny.tensor(f"blk.0.{name}.weight", out, into)
        tiny.tensor(f"blk.0.{name}.bias", out)
    for name, out in (("cls", width), ("cls.output", 1)) if ranks else ():
        tiny.tensor(f"{name}.weight", out, width)
        tiny.tensor(f"{name}.bias", out)
    return tiny.save()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files by kind; ``window`` looks back 16 tokens, ``parts`` is the folder of ``m-0000N-of-00002.gguf``."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "narrow": tiny_attention(folder / "narrow.gguf", "llama", heads=4),
        "parts": tiny_attention(folder / "m.gguf", "llama", parts=2).parent,
        "llama": tiny_attention(folder / "llama.gguf", "llama"),
        "qwen2vl": tiny_attention(folder / "qwen2vl.gguf", "qwen2vl"),
        "window": tiny_attention(folder / "window.gguf", "gemma2", window=16),
        "mamba": tiny_mamba(folder / "mamba.gguf"),
        "bert": tiny_bert(folder / "bert.gguf"),
        "reranker": tiny_bert(folder / "reranker.gguf", ranks=True),
    }
