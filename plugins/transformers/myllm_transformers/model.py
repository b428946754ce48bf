"""A model loaded by transformers: from files that were looked at, onto a device, in a type, quantized or not.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.allocator import give_back
from myllm_core.errors import EngineError, EngineMissing, IntegrityError, MyllmError, OutOfMemory
from myllm_core.machine import free_cores, free_memory
from myllm_core.models.config_file import read_config
from myllm_core.models.hub_files import HubFiles
from myllm_transformers.options import LoadSettings
from myllm_transformers.shape import Shape, dtype_on_host

_INDEX = "model.safetensors.index.json"
_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate", re.I)
_UNUSED = re.compile(r"(^|\.)(pooler|cls|lm_head)\.")
"""Weights that embeddings don't need, so that they may be missing where only these are made."""


@dataclass(slots=True)
class LoadedModel:
    """The module, where it is, and what its numbers are."""

    module: Any
    device: torch.device
    dtype: torch.dtype
    quantized: bool = False

    @property
    def bytes(self) -> int:
        """Bytes that the weights take."""
        return int(self.module.get_memory_footprint())

    def close(self) -> None:
        """Free the weights."""
        self.module = None
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_model(weights: list[Path], files: HubFiles, shape: Shape, settings: LoadSettings) -> LoadedModel:
    """Load a causal model, a classifier that scores documents, or the part of another that embeddings come from.

    Raises ``EngineMissing`` when a package is missing, ``OutOfMemory``, ``IntegrityError`` when weights are missing,
    and ``EngineError``.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(settings.n_threads or free_cores())
    device = choose_device(settings)
    dtype = _dtype(settings, shape, device, files.text_config)
    options: dict[str, Any] = {"dtype": dtype, "quantization_config": _quantization(settings, shape)}
    if settings.attn_implementation != "auto":
        options["attn_implementation"] = settings.attn_implementation
    with library_errors("load the model"), links(_model_files(weights, files)) as folder:
        cls = _class(shape, files)
        module, told = cls.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **{name: value for name, value in options.items() if value is not None},
        )
        _refuse_missing(told, shape)
        if options["quantization_config"] is None and not shape.quantized:
            module = module.to(device)
    module.eval()
    return LoadedModel(module, module.device, dtype, bool(shape.quantized) or settings.quantization != "none")


def choose_device(settings: LoadSettings) -> torch.device:
    """The device that is asked for, or the best there is. Raises ``EngineError`` for one that isn't there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["xpu"] = torch.xpu.is_available()
    if settings.device == "auto":
        return torch.device(next(name for name in ("cuda", "xpu", "mps", "cpu") if available[name]))
    device = torch.device(settings.device)
    there = available[device.type]
    if there and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = False
    if not there:
        raise EngineError(f"torch sees no {settings.device} here; set device to auto or cpu, or install a torch for it")
    return device


def _dtype(settings: LoadSettings, shape: Shape, device: torch.device, config: dict[str, Any]) -> torch.dtype:
    name: str = settings.dtype
    if name == "auto" and device.type == "cpu":
        name = dtype_on_host(shape, settings, free_memory())
    elif name == "auto":
        own = config.get("dtype") or config.get("torch_dtype")
        name = own if own in ("float32", "float16", "bfloat16") else "float16"
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def _quantization(settings: LoadSettings, shape: Shape) -> Any:
    if settings.quantization == "none":
        return None
    if shape.quantized:
        raise EngineError(f"the model is quantized already ({shape.quantized}); load it with quantization none")
    import transformers

    package = settings.quantization.partition("-")[0]
    with library_errors("quantize the model"):
        try:
            if settings.quantization == "torchao-int8":
                from torchao.quantization import Int8WeightOnlyConfig

                return transformers.TorchAoConfig(Int8WeightOnlyConfig())
            __import__(package)
            eight = settings.quantization == "bitsandbytes-8bit"
            return transformers.BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight)
        except ImportError as error:
            advice = f"pip install {package} accelerate"
            raise EngineMissing(f"{settings.quantization} needs {package} ({error}); {advice}") from error


def _class(shape: Shape, files: HubFiles) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if shape.sees and files.config("config.json").get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    if shape.scores:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM if shape.writes else transformers.AutoModel


def _model_files(weights: list[Path], files: HubFiles) -> dict[str, Path]:
    names = {path.name: path for path in weights}
    if len(weights) == 1:
        names = {"model.safetensors": weights[0]}
    else:
        index = files.need(_INDEX)
        parts = read_config(index).get("weight_map")
        if not isinstance(parts, dict) or not set(map(str, parts.values())) <= names.keys():
            raise IntegrityError(f"{_INDEX} names files that the model hasn't; pull it again")
        names[_INDEX] = index
    for name in ("config.json", "generation_config.json"):
        if files.config(name):
            names[name] = files.need(name)
    return names


@contextmanager
def links(names: dict[str, Path]) -> Iterator[Path]:
    """A folder that has only what was looked at: no code, pickle or adapter that lies beside it is ever found."""
    with tempfile.TemporaryDirectory(prefix="myllm-", ignore_cleanup_errors=True) as folder:
        for name, path in names.items():
            _link(path.resolve(), Path(folder, name))
        yield Path(folder)


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # Windows wants a privilege for symbolic links
        os.link(path, link)


def _refuse_missing(told: dict[str, Any], shape: Shape) -> None:
    """Weights that aren't in the files would be random numbers."""
    missing = sorted(str(name) for name in told.get("missing_keys") or ())
    if not (shape.writes or shape.scores):
        missing = [name for name in missing if not _UNUSED.search(name)]
    if missing:
        raise IntegrityError(f"the model's files lack weights ({', '.join(missing[:3])}); pull it again")


@contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """Turn what torch and transformers raise into errors that say what to do."""
    try:
        yield
    except MyllmError:
        raise
    except ImportError as error:
        text = _line(error)
        raise EngineMissing(f"transformers can't {doing}: {text}; install what it names with pip") from error
    except Exception as error:
        text = _line(error)
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
            raise OutOfMemory(
                f"there is not enough memory to {doing}; set a smaller n_ctx or max_sequences, dtype bfloat16, or take "
                "a smaller model",
                free=free_memory(),
            ) from error
        raise EngineError(f"transformers can't {doing}: {text}") from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
