"""How much memory a model takes, told from its metadata before llama.cpp sees the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from myllm_core import MemoryEstimate
from myllm_core.models.gguf import GGUF, LongArray
from myllm_llamacpp.offload import Split
from myllm_llamacpp.options import LoadSettings

if TYPE_CHECKING:
    from myllm_llamacpp.files import Files

AUTO_LIMIT = 32_768
"""The longest context that is chosen without being asked for: a longer one is seldom used and always paid."""

_AUTO_POOL = 16_384  # what several sequences of a model with a short context get together
_LEAST_CONTEXT = 2048
_KV_SHARE = 0.25  # of the memory left beside the weights
_MOST_PATCHES = 2**16  # of an image
_ACTIVATIONS = 5  # of a patch that are there at a time, each as wide as its embedding
_PAGE = 256  # llama.cpp rounds contexts up to it

# Bytes an element, from the block sizes in ggml-common.h (32 elements a block where quantized).
_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that decide about memory; 0 where its file doesn't say."""

    trained_context: int
    layers: int
    kv_heads: int
    key_length: int
    value_length: int
    state_floats: int
    embedding: int
    feed_forward: int
    vocabulary: int

    def cache_bytes(self, settings: LoadSettings) -> float:
        """Bytes of KV cache a token: an upper bound, since sliding windows are counted as whole layers."""
        keys = self.key_length * _BYTES[settings.keys]
        values = self.value_length * _BYTES[settings.type_v]
        return self.kv_heads * (keys + values)

    def context(self, settings: LoadSettings, weights: int, free: int) -> int:
        """Tokens of cache to allocate: what was asked for, else what model and ``free`` bytes of memory suggest."""
        trained = self.trained_context or AUTO_LIMIT
        if settings.n_ctx:
            return settings.n_ctx
        alone = min(trained, AUTO_LIMIT)
        shared = max(alone, min(trained * settings.n_parallel, _AUTO_POOL))
        wanted = shared if settings.kv_unified else alone * settings.n_parallel
        per_token = self.cache_bytes(settings)
        affordable = int((free - weights) * _KV_SHARE / per_token) if per_token else wanted
        least = min(trained, _LEAST_CONTEXT)
        return max(least, min(wanted, affordable) // _PAGE * _PAGE)

    def total(self, settings: LoadSettings, weights: int, free: int) -> tuple[int, int]:
        """Bytes of the KV cache with all states, and of the buffers that a forward pass needs."""
        context = self.context(settings, weights, free)
        cache = int(context * self.cache_bytes(settings)) + 4 * self.state_floats * settings.n_parallel
        # Fitted to llama.cpp's own report for batches of 128 to 2048: activations, and a 2-byte attention mask.
        row = 4 * (4 * self.embedding + 3 * self.feed_forward) + 2 * context
        outputs = 2 * 4 * (settings.n_parallel + settings.guesses) * self.vocabulary
        return cache, settings.n_batch * row + outputs


def shape_of(gguf: GGUF) -> Shape:
    """Read the sizes from a file's metadata."""
    get = _Numbers(gguf)
    layers, heads, embedding = get("block_count"), get("attention.head_count"), get("embedding_length")
    head = embedding // heads if heads else 0
    kv_heads = gguf.metadata.get(f"{gguf.architecture}.attention.head_count_kv", heads)
    inner, state = get("ssm.inner_size"), get("ssm.state_size")
    convolution = max(0, get("ssm.conv_kernel") - 1) * (inner + 2 * get("ssm.group_count") * state)
    return Shape(
        trained_context=gguf.context_length,
        layers=layers,
        kv_heads=_total(kv_heads, layers),
        key_length=get("attention.key_length") or head,
        value_length=get("attention.value_length") or head,
        state_floats=layers * (inner * state + convolution),
        embedding=embedding,
        feed_forward=get("feed_forward_length"),
        vocabulary=get("vocab_size") or _length(gguf.metadata.get("tokenizer.ggml.tokens")),
    )


def draft_bytes(files: Files, settings: LoadSettings, free: int) -> int:
    """Bytes of a draft model's cache and buffers; 0 without one. Its cache has as many tokens as the other's."""
    if not files.draft:
        return 0
    tokens = shape_of(files.headers[0]).context(settings, files.size, free)
    return sum(shape_of(files.draft_headers[0]).total(settings.model_copy(update={"n_ctx": tokens}), 0, free))


def vision_bytes(files: Files) -> int:
    """Bytes of buffers that encoding an image needs; 0 without a projector. Fitted to what llama.cpp allocates."""
    total = 0
    for header in files.projector.values():
        get = _Numbers(header)
        size, patch = get("vision.image_size"), get("vision.patch_size")
        patches = min((size // patch) ** 2 if patch else 0, _MOST_PATCHES)
        total += 4 * patches * (_ACTIVATIONS * get("vision.embedding_length") + get("vision.feed_forward_length"))
    return total


def estimate(shape: Shape, settings: LoadSettings, weights: int, free: int, split: Split | None) -> MemoryEstimate:
    """What loading takes of the host's memory, and of the GPU's where some layers go there."""
    total = weights + sum(shape.total(settings, weights, free))
    if split is None:
        return MemoryEstimate(host=total)
    host = total if split.unified else max(0, total - split.device)
    return MemoryEstimate(host, split.device, split.free, split.least)


class _Numbers:
    """Whole numbers of the model's own metadata; the largest of a list that says one for each layer."""

    def __init__(self, gguf: GGUF) -> None:
        self._gguf = gguf

    def __call__(self, key: str) -> int:
        value = self._gguf.metadata.get(f"{self._gguf.architecture}.{key}", 0)
        values = value if isinstance(value, list) else [value]
        return max((v for v in values if isinstance(v, int)), default=0)


def _total(per_layer: Any, layers: int) -> int:
    if isinstance(per_layer, list):
        return sum(v for v in per_layer if isinstance(v, int))
    return per_layer * layers if isinstance(per_layer, int) else 0


def _length(array: Any) -> int:
    return array.length if isinstance(array, LongArray) else len(array) if isinstance(array, list) else 0
