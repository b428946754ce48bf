"""The options of ``OptimumEngine.load``: strict, with ranges, and named as Optimum and ONNX Runtime name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from myllm_core import LoadOption
from myllm_core.errors import InvalidOption


class LoadSettings(BaseModel):
    """How a model is loaded. 0 means: what fits this model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_length: int = Field(
        0, ge=0, le=2**24, description="tokens that one sequence may hold; 0 takes the trained ones, at most 4096"
    )
    max_sequences: int = Field(2, ge=1, le=64, description="how many sequences take turns in each step")
    chunk_size: int = Field(128, ge=1, le=2**16, description="most tokens of a prompt in one forward pass")
    intra_op_num_threads: int = Field(0, ge=0, le=512, description="processor threads; 0 lets ONNX Runtime choose")
    file_name: str = Field("", description="the ONNX file to load, when the model has several; empty takes the first")


def parse_load_options(given: Mapping[str, Any]) -> LoadSettings:
    """Validate load options. Raises ``InvalidOption`` that names the option, what is wrong, and the known ones."""
    try:
        return LoadSettings.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(LoadSettings.model_fields)
            raise InvalidOption(f"unknown load option {name[:60]}; known: {known}") from None
        raise InvalidOption(f"load option {name}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


LOAD_OPTIONS = tuple(
    LoadOption(name, field.default, field.description or "", type(field.default))
    for name, field in LoadSettings.model_fields.items()
)
"""What ``Engine.load_options`` says, made from ``LoadSettings``."""
