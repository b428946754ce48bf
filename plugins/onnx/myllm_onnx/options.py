"""The options of ``OnnxEngine.load``: strict, with ranges, and named as ONNX Runtime and its GenAI name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from myllm_core import LoadOption
from myllm_core.errors import InvalidOption

Provider = Literal["cpu", "cuda", "dml"]


class LoadSettings(BaseModel):
    """How a model is loaded. 0 means: what fits this machine and model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_length: int = Field(
        0, ge=0, le=2**24, description="tokens that one sequence may hold; 0 chooses by model and memory"
    )
    max_batch_size: int = Field(4, ge=1, le=64, description="how many sequences run at the same time")
    chunk_size: int = Field(128, ge=1, le=2**16, description="most tokens of a prompt in one forward pass")
    provider: Provider = Field("cpu", description="what computes: cpu, cuda or dml (DirectML), where it is installed")
    intra_op_num_threads: int = Field(
        0, ge=0, le=512, description="processor threads; 0 takes the physical cores that may be used"
    )
    allow_spinning: bool = Field(
        False, description="threads wait for work by spinning: a little faster alone, slower beside other programs"
    )
    file_name: str = Field("", description="the ONNX file to load, when the model has several; empty takes the first")


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
    return f"load option {name}: {first['msg'][0].lower()}{first['msg'][1:]}"


LOAD_OPTIONS = tuple(
    LoadOption(name, field.default, field.description or "", type(field.default))
    for name, field in LoadSettings.model_fields.items()
)
"""What ``Engine.load_options`` says, made from ``LoadSettings``."""
