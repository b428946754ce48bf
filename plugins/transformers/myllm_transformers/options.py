"""The options of ``TransformersEngine.load``: strict, with ranges, and named as transformers names them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from myllm_core.load_options import LoadOptions

Quantization = Literal["none", "bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"]


class LoadSettings(LoadOptions):
    """How a model is loaded. 0 and ``auto`` mean: what fits this machine and model."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,2})?)$",
        description="what computes: cpu, cuda, cuda:1, mps, xpu; auto takes an accelerator when there is one",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="type of weights and cache; auto is the model's on an accelerator, float32 on a processor"
    )
    quantization: Quantization = Field(
        "none", description="weights made smaller while loading, by the package that the name begins with"
    )
    attn_implementation: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="how attention is computed; auto lets transformers choose for the model"
    )
    n_ctx: int = Field(
        0, ge=0, le=2**24, description="tokens that one sequence may hold; 0 chooses by model and memory"
    )
    max_sequences: int = Field(8, ge=1, le=256, description="how many sequences run at the same time")
    n_batch: int = Field(512, ge=1, le=2**16, description="most tokens of a prompt in one forward pass")
    n_threads: int = Field(
        0,
        ge=0,
        le=512,
        description="processor threads; 0 takes the physical cores that affinity and control groups leave us",
    )
