"""Generation options as people give them: strict, with ranges, and refused when unknown.

One model serves the HTTP API, the command line, manifests and Python programs, so all agree.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from myllm_core.errors import InvalidOption, UnsupportedError
from myllm_core.types import Grammar, Sampling

MAX_TOKENS = 2**20


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Options(BaseModel):
    """How to generate. None means: the model's default, else the general one (in brackets)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    temperature: float | None = Field(
        None, ge=0, le=2, description="0 picks the likeliest token; higher is freer (0.7)"
    )
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="only the k likeliest tokens; 0 is off (40)")
    top_p: float | None = Field(None, ge=0, le=1, description="only tokens of this much probability together (0.95)")
    min_p: float | None = Field(
        None, ge=0, le=1, description="only tokens of this share of the likeliest one's probability (0)"
    )
    repeat_penalty: float | None = Field(
        None, gt=0, le=10, description="divides the logits of recent tokens; 1 is off (1.0)"
    )
    repeat_last_n: int | None = Field(None, ge=0, le=2**20, description="how many recent tokens the penalties see (64)")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="taken off the logits of tokens seen (0)")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="taken off the logits per time seen (0)")
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="makes the answer repeatable (random)")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="most tokens to write (until done or the context is full)"
    )
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]] | None, BeforeValidator(_listed)] = (
        Field(None, max_length=16, description="texts that end the answer, and aren't part of it")
    )
    logprobs: int | None = Field(
        None, ge=0, le=20, description="log probabilities of the chosen token and of the n best"
    )
    fit: Literal["drop", "error"] | None = Field(
        None, description="a conversation too long: leave out the oldest turns and say so, or refuse (drop)"
    )
    ignore_eos: bool | None = Field(None, description="go on to max_tokens where the model would end (false)")
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = Field(None, max_length=1000, description="what is added to the logits of tokens, by their ids; -100 bans one")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = Field(
        None, description="how much a model that reasons does so; only where its chat template knows of it"
    )
    json_schema: dict[str, Any] | None = Field(None, description="JSON schema that the answer follows")
    regex: str | None = Field(None, min_length=1, description="regular expression that the answer matches")
    grammar: str | None = Field(None, min_length=1, description="grammar (llguidance's Lark) that the answer follows")

    @model_validator(mode="after")
    def _one_grammar(self) -> Self:
        if sum(value is not None for value in (self.json_schema, self.regex, self.grammar)) > 1:
            raise ValueError("give one of json_schema, regex and grammar, not several")
        return self


def parse_options(given: Mapping[str, Any]) -> Options:
    """Validate options. Raises ``InvalidOption`` that names the option, what is wrong, and the known ones."""
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidOption(option_message(error)) from None


def option_message(error: ValidationError) -> str:
    """One line for the first thing wrong."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "options"
    if first["type"] == "extra_forbidden":
        return f"unknown option {name[:60]}; known: {', '.join(Options.model_fields)}"
    return f"option {name}: {first['msg'][0].lower()}{first['msg'][1:]}"


def merge(*layers: Options | Mapping[str, Any] | None) -> Options:
    """One ``Options`` out of several layers; a later layer's values win. Raises ``InvalidOption``."""
    merged: dict[str, Any] = {}
    for layer in layers:
        values = layer.model_dump(exclude_none=True) if isinstance(layer, Options) else dict(layer or {})
        merged |= values
    return parse_options(merged)


_SAMPLING = tuple(Sampling.__dataclass_fields__)
_OFF: dict[str, Any] = {
    "logit_bias": {},
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "repeat_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def sampling(options: Options, honoured: Iterable[str], engine: str) -> Sampling:
    """Resolve the sampling options; a random seed is chosen when none is given.

    Raises ``UnsupportedError`` when an option is given that the engine doesn't honour; one that is given as off asks
    for nothing.
    """
    given = {name: value for name, value in options.model_dump(exclude_none=True).items() if name in _SAMPLING}
    refused = sorted(name for name in given.keys() - set(honoured) if given[name] != _OFF.get(name))
    if refused:
        raise UnsupportedError(
            f"the {engine} engine has no option {refused[0]}; it has: {', '.join(sorted(honoured)) or 'none'}"
        )
    if "logit_bias" in given:
        given["logit_bias"] = tuple((int(token), bias) for token, bias in given["logit_bias"].items())
    return Sampling(**{"seed": random.getrandbits(32), **given})


def grammar(options: Options) -> Grammar | None:
    """What the answer is to be held to, if anything."""
    if options.json_schema is not None:
        return Grammar("json_schema", json.dumps(options.json_schema))
    if options.regex is not None:
        return Grammar("regex", options.regex)
    return Grammar("lark", options.grammar) if options.grammar is not None else None
