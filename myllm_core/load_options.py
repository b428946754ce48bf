"""Load options as a model of pydantic's: strict, with ranges, and said to users in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from myllm_core.engine import LoadOption
from myllm_core.errors import InvalidOption


class LoadOptions(BaseModel):
    """What an engine's ``load`` is given. Subclass it with a field, a default and a description for each option."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def load_options(cls) -> tuple[LoadOption, ...]:
        """What ``Engine.load_options`` says."""
        return tuple(
            LoadOption(name, field.default, field.description or "", type(field.default))
            for name, field in cls.model_fields.items()
        )

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Validate load options. Raises ``InvalidOption`` that names the option, what is wrong, and the known ones."""
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise InvalidOption(cls._message(error)) from None

    @classmethod
    def _message(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        if first["type"] == "value_error":  # what options that don't go together say themselves
            return f"load options: {first['ctx']['error']}"
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            return f"unknown load option {name[:60]}; known: {', '.join(cls.model_fields)}"
        if first["type"] == "string_pattern_mismatch":
            about = cls.model_fields[name].description
            return f"load option {name} can't be {str(first['input'])[:60]!r}: {about}"
        return f"load option {name}: {first['msg'][0].lower()}{first['msg'][1:]}"
