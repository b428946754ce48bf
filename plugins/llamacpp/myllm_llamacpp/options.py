"""The options of ``LlamaCppEngine.load``: strict, with ranges, and named as llama.cpp names them."""

from __future__ import annotations

import platform
from typing import Literal

from pydantic import Field, model_validator

from myllm_core.load_options import LoadOptions
from myllm_llamacpp.hardware import has_gpu_backend

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

MAX_SEQUENCES = 256
"""``LLAMA_MAX_SEQ``: llama.cpp ends the process when a sequence id is larger."""

MAX_ROWS = 2**16
"""Tokens of the largest batch."""

_TOO_BIG = 2**24
_LEAST_CONTEXT = 128
_MOST_CACHE = 2**24
_GUESSES = 16


class LoadSettings(LoadOptions):
    """How a model is loaded. 0 and ``auto`` mean: what fits this machine and model."""

    n_ctx: int = Field(
        0, ge=0, le=_TOO_BIG, description="tokens that all sequences hold together; 0 chooses by model and memory"
    )
    n_parallel: int = Field(8, ge=1, le=MAX_SEQUENCES, description="how many sequences run at the same time")
    n_batch: int = Field(512, ge=2, le=MAX_ROWS, description="most tokens in one forward pass")
    n_threads: int = Field(
        0,
        ge=0,
        le=512,
        description="processor threads; 0 takes the physical cores that are free, fewer while other programs use them",
    )
    n_gpu_layers: int = Field(
        -1,
        ge=-1,
        le=2**16,
        description="layers kept on the GPU, when llama.cpp was built for one; -1: as many as fit its free memory",
    )
    flash_attn: Literal["auto", "on", "off"] = Field("auto", description="flash attention: auto, on or off")
    type_k: CacheType | Literal["auto"] = Field(
        "auto", description="how cached keys are stored, such as f16 or q8_0; auto: bf16 on x86 processors, else f16"
    )
    type_v: CacheType = Field("f16", description="how cached values are stored; quantized ones need flash attention")
    kv_unified: bool = Field(
        True, description="one cache for all sequences, so that each may be long and prefixes are shared"
    )
    swa_full: bool = Field(
        False, description="keep all of a sliding-window model's cache: more memory, more reuse of prefixes"
    )
    draft: str = Field(
        "", description="a small model of the same vocabulary that guesses tokens: a GGUF file, or an installed model"
    )
    draft_max: int = Field(4, ge=1, le=_GUESSES - 1, description="most tokens that the draft model guesses at a time")
    speculation: Literal["auto", "lookup", "draft", "off"] = Field(
        "auto",
        description="auto: guess tokens from what was said before or by draft, where that proves quicker; lookup or "
        "draft: always, from that alone; off",
    )
    context_shift: bool = Field(
        False, description="go on when a context is full: forget half of it, oldest tokens first, and report how many"
    )
    n_keep: int = Field(
        4, ge=-1, le=_TOO_BIG, description="first tokens that context_shift never forgets; -1 is the whole prompt"
    )
    lora: str = Field("", description="LoRA adapters for the model: files as PATH or PATH=SCALE, with commas between")
    mmproj: str = Field(
        "", description="the projector for images, a GGUF file; empty takes the one beside the model, off takes none"
    )
    image_max_tokens: int = Field(
        0,
        ge=0,
        le=MAX_ROWS,
        description="most tokens that an image stands for, where the model leaves that open; 0 is its own limit",
    )
    cache_ram: int = Field(
        -1,
        ge=-1,
        le=_MOST_CACHE,
        description="MiB of memory for sequences that left the cache; 0 keeps none, -1 takes an eighth of what is free",
    )
    cache_disk: int = Field(
        512,
        ge=0,
        le=_MOST_CACHE,
        description="MiB on disk for sequences of all models that outlast a restart; 0 is off",
    )
    cache_dir: str = Field("", description="folder of that disk cache; empty takes the user's cache folder")
    use_mmap: bool = Field(True, description="map the file into memory instead of reading it")
    use_mlock: bool = Field(False, description="keep the model from being swapped out")

    @property
    def keys(self) -> CacheType:
        """How cached keys are stored.

        For two caches of f16 llama.cpp has three attention kernels on a processor, taken by the batch's shape; for keys
        and values of different types it has one, so that a reply doesn't depend on what else is in the batch. bf16 keys
        are as quick and as good, where the processor has vectors for them. GPUs want both of one type.
        """
        if self.type_k != "auto":
            return self.type_k
        if self.context_shift:
            return "f16"
        on_x86 = platform.machine().lower() in ("x86_64", "amd64") and not (self.n_gpu_layers and has_gpu_backend())
        return "bf16" if on_x86 and self.type_v == "f16" and self.flash_attn != "off" else "f16"

    @property
    def guesses(self) -> int:
        """Most guessed tokens that a step checks."""
        return 0 if self.speculation == "off" else _GUESSES

    @model_validator(mode="after")
    def _agree(self) -> LoadSettings:
        least = max(_LEAST_CONTEXT, self.n_parallel)
        if self.n_ctx and self.n_ctx < least:
            raise ValueError(f"n_ctx {self.n_ctx} is too small; set 0 (automatic) or at least {least}")
        if self.context_shift and self.keys not in ("f16", "f32"):  # llama.cpp ends the process for some of the others
            raise ValueError(f"keys of type_k {self.type_k} can't be moved by context_shift; choose f16 or f32")
        if self.speculation == "draft" and not self.draft:
            raise ValueError("speculation draft needs a draft model; set draft")
        if self.draft and self.speculation in ("lookup", "off"):
            raise ValueError(f"the draft model isn't used with speculation {self.speculation}; set auto or draft")
        if self.n_batch < self.n_parallel:
            raise ValueError(f"n_batch {self.n_batch} must not be below n_parallel {self.n_parallel}")
        if self.flash_attn == "off" and self.type_v not in ("f32", "f16", "bf16"):
            raise ValueError(f"type_v {self.type_v} needs flash attention; set flash_attn to auto or on")
        return self
