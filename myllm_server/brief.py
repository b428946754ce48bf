"""Bodies whose refusal is brief: the first wrong entry of a list ends its validation.

pydantic collects every error, and each takes about 1 kB: a body of 32 MiB could hold millions of wrong entries, and a
client is told of the first.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema


def _end_lists_early(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        _end_lists_early(part)


class Brief(BaseModel):
    """A body, or a part of one, whose lists are validated up to the first wrong entry."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic's own schema, with that said of each list."""
        schema = handler(source)
        _end_lists_early(schema)
        return schema
