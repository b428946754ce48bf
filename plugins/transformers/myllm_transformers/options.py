"""The options of ``TransformersEngine.load``: strict, with ranges, and named as transformers names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from myllm_core import LoadOption
from myllm_core.errors import InvalidOption

Quantization = Literal["none", "bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"]


class LoadSettings(BaseModel):
    """How a model is loaded. 0 and ``auto`` mean: what fits this machine and model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

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
    n_threads: int = Field(0, ge=0, le=512, description="processor threads; 0 leaves the choice to torch")


def parse_load_options(given: Mapping[str, Any]) -> LoadSettings:
    """Validate load options. Raises ``InvalidOption`` that names the option, what is wrong, and the known ones."""
    try:
        return LoadSettings.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidOption(_message(error)) from None


def _message(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"unknown load option {name[:60]}; known: {', '.join(LoadSettings.model_fields)}"
    if first["type"] == "string_pattern_mismatch":
        about = LoadSettings.model_fields[name].description
        return f"load option {name} can't be {str(first['input'])[:60]!r}: {about}"
    return f"load option {name}: {first['msg'][0].lower()}{first['msg'][1:]}"


LOAD_OPTIONS = tuple(
    LoadOption(name, field.default, field.description or "", type(field.default))
    for name, field in LoadSettings.model_fields.items()
)
"""What ``Engine.load_options`` says, made from ``LoadSettings``."""
