"""What a model is and how much memory it takes, told from its JSON files before torch or transformers come in."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm_core import MemoryEstimate, Model
from myllm_core.errors import EngineError, IntegrityError
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.safetensors_file import read_safetensors
from myllm_transformers.options import LoadSettings
from myllm_transformers.scoring import refusal_to_score, scores_documents

AUTO_LIMIT = 32_768
"""The longest context that is chosen without being asked for: a longer one is seldom used and always paid."""

_LEAST_CONTEXT = 2048
_CACHE_SHARE = 0.25  # of the memory left beside the weights
_PAGE = 256
_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_JUDGES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_QUANTIZED_BYTES = {"bitsandbytes-8bit": 1.1, "bitsandbytes-4bit": 0.7, "torchao-int8": 1.1}
_PACKED = 16
"""At most so many weights of a quantized model lie in one element of a tensor."""
_MOST_LAYERS = 2000
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "embed_dim")
_PATCHES = 4096
"""A guess at the parts that an image is cut into, where that depends on the image."""
_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that decide about memory; 0 where its files don't say.

    ``stored`` are the bytes of its weights as they lie on disk, ``parameters`` their count, both summed over files.
    ``scores`` says whether it scores documents, ``sees`` whether it has a part for images, and ``image`` how many
    numbers an image is inside of it.
    """

    writes: bool
    scores: bool
    sees: bool
    image: int
    quantized: str
    trained_context: int
    parameters: int
    stored: int
    layers: int
    cache_width: int
    hidden: int
    vocabulary: int

    def weight_bytes(self, settings: LoadSettings, dtype: str) -> int:
        """Bytes that the weights take once they are loaded."""
        if self.quantized:
            return self.stored
        each = _QUANTIZED_BYTES.get(settings.quantization, _BYTES[dtype])
        return int(self.parameters * each)

    def context(self, settings: LoadSettings, dtype: str, free: int) -> int:
        """Tokens that each sequence gets: what was asked for, else what model and ``free`` bytes of memory suggest."""
        trained = self.trained_context or AUTO_LIMIT
        if settings.n_ctx:
            return min(settings.n_ctx, self.trained_context or settings.n_ctx)
        per_token = self.cache_bytes(dtype) * settings.max_sequences
        left = free - self.weight_bytes(settings, dtype)
        affordable = int(left * _CACHE_SHARE / per_token) if per_token else AUTO_LIMIT
        wanted = min(trained, AUTO_LIMIT, affordable // _PAGE * _PAGE)
        return max(min(trained, _LEAST_CONTEXT), wanted)

    def cache_bytes(self, dtype: str) -> float:
        """Bytes of cache a token of one sequence: an upper bound, since every layer is counted as a whole one."""
        return self.layers * self.cache_width * _BYTES[dtype] if self.writes else 0.0

    def total(self, settings: LoadSettings, dtype: str, free: int) -> int:
        """Bytes of weights, cache and what a forward pass needs beside them."""
        tokens = self.context(settings, dtype, free)
        cache = tokens * settings.max_sequences * self.cache_bytes(dtype)
        logits = 2 * 4 * settings.max_sequences * self.vocabulary if self.writes else 0
        activations = 24 * (settings.n_batch * self.hidden + self.image) * _BYTES[dtype]
        return self.weight_bytes(settings, dtype) + int(cache + activations) + logits


def weights_of(model: Model, files: HubFiles) -> list[Path]:
    """The safetensors files that lie beside ``config.json``. Raises ``EngineError`` when there are none."""
    folder = files.need("config.json").parent
    weights = [path for path in model.paths if path.suffix == ".safetensors" and path.parent == folder]
    if not weights:
        raise EngineError(f"{model.name} has no safetensors file beside its config.json; pull the whole repository")
    return weights


def read_shape(model: Model, files: HubFiles) -> Shape:
    """Read the sizes, and refuse those that the weights can't have.

    Raises ``IntegrityError`` for files that are damaged, absurd or name code, ``EngineError`` for what isn't there.
    """
    if reason := refusal(files):
        raise EngineError(f"{model.name} can't be run by transformers here: {reason}")
    config, eye = files.text_config, _eye(files)
    headers = [read_safetensors(path) for path in weights_of(model, files)]
    heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    hidden = _number(config, *_WIDTHS)
    head = _number(config, "head_dim") or (hidden // heads if heads else 0)
    shape = Shape(
        writes=writes_text(files),
        scores=scores_documents(files),
        sees=sees_images(files),
        image=(_patches(eye) or _PATCHES) * _number(eye, *_WIDTHS),
        quantized=quantization_of(files.config("config.json")),
        trained_context=files.trained_context,
        parameters=sum(header.parameters for header in headers),
        stored=sum(path.stat().st_size for path in weights_of(model, files)),
        layers=_number(config, *_LAYERS),
        cache_width=2 * head * (_number(config, "num_key_value_heads") or heads),
        hidden=hidden,
        vocabulary=_number(config, "vocab_size"),
    )
    most = shape.parameters * (_PACKED if shape.quantized else 1)
    _refuse_absurd(most, config, shape.vocabulary)
    _refuse_absurd(most, eye, _patches(eye))
    return shape


def writes_text(files: HubFiles) -> bool:
    """Whether the files are those of a model that writes; one that comes with a way of pooling makes embeddings."""
    names = files.config("config.json").get("architectures")
    named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return files.find("modules.json") is None and any(name.endswith(_WRITES) for name in named)


def sees_images(files: HubFiles) -> bool:
    """Whether the files are those of a model that writes and has a part for images, beside its processor."""
    return writes_text(files) and bool(_eye(files))


def _eye(files: HubFiles) -> dict[str, Any]:
    """What the configuration says of a model's part for images; empty when it has none."""
    config = files.config("config.json").get("vision_config")
    return config if isinstance(config, dict) else {}


def _patches(eye: dict[str, Any]) -> int:
    """Parts that an image is cut into; 0 where that depends on the image."""
    patch = _number(eye, "patch_size")
    return (_number(eye, "image_size") // patch) ** 2 if patch else 0


def refusal(files: HubFiles) -> str:
    """Why the engine can't run such a model; empty when it can."""
    config = files.config("config.json")
    names = config.get("architectures")
    if not config:
        return "the model comes without its config.json"
    for name in _PROCESSOR if sees_images(files) else ():
        files.config(name)  # it is refused when it names code
    if config.get("is_encoder_decoder") is True:
        return "the model is an encoder with a decoder, which this engine doesn't run"
    if scores_documents(files):
        if reason := refusal_to_score(files):
            return reason
    elif isinstance(names, list) and any(str(name).endswith(_JUDGES) for name in names):
        return "the model judges texts, and neither writes, makes embeddings, nor has a single label to score them by"
    return "" if _number(files.text_config, "vocab_size") else "the model isn't one of texts"


def quantization_of(config: dict[str, Any]) -> str:
    """How the model's weights are quantized on disk, such as ``gptq``; empty when they aren't."""
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method") or "unknown") if isinstance(quantization, dict) else ""


def _refuse_absurd(most: int, config: dict[str, Any], rows: int) -> None:
    """Sizes that ``most`` weights can't have would fill the memory, or keep the library busy for ever.

    ``rows`` are those of the part's largest table: its vocabulary, or the patches of an image.
    """
    hidden, layers = _number(config, *_WIDTHS), _number(config, *_LAYERS)
    inner = _number(config, "intermediate_size", "n_inner", "ffn_dim")
    if layers > _MOST_LAYERS or max(rows * hidden, layers * hidden, inner * hidden) > most:
        raise IntegrityError("config.json describes a larger model than the weights are of; pull the model again")


def _number(config: dict[str, Any], *keys: str) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 2**40), 0)


def estimate(shape: Shape, settings: LoadSettings, free: int) -> MemoryEstimate:
    """What loading takes. Weights for an accelerator with its own memory go through the host's as they are stored."""
    device = _device(settings)
    if device == "cpu":
        return MemoryEstimate(host=shape.total(settings, dtype_on_host(shape, settings, free), free))
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if shape.stored > 3 * shape.parameters else "float16"
    total = shape.total(settings, dtype, free)
    return MemoryEstimate(host=total) if device == "mps" else MemoryEstimate(host=shape.stored, device=total)


def _device(settings: LoadSettings) -> str:
    """The kind of device that will be taken, as far as can be told without torch."""
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    return "cuda" if _NVIDIA_DRIVER.exists() else "cpu"


def dtype_on_host(shape: Shape, settings: LoadSettings, free: int) -> str:
    """The type that ``auto`` means on a processor: the fastest, or half its size where the weights wouldn't fit."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if shape.weight_bytes(settings, "float32") < free else "bfloat16"
