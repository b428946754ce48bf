"""How a model's files say that its token vectors become one vector: the layout of sentence-transformers.

``modules.json`` lists what an input goes through: the transformer, a pooling (``1_Pooling/config.json``), perhaps a
normalisation. Without it the vectors of all tokens are averaged and brought to length 1, as the llama.cpp engine does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from myllm_core.errors import UnsupportedError
from myllm_core.models.hub_files import HubFiles

_MODES = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """``modes`` are ways of pooling, whose vectors are put behind each other; ``prompt`` is put before each text.

    ``limit`` is the most tokens of an input, 0 when the files don't say.
    """

    modes: tuple[str, ...] = ("mean",)
    normalise: bool = True
    lower: bool = False
    limit: int = 0
    prompt: str = ""


def read_recipe(files: HubFiles) -> Recipe:
    """Read it. Raises ``IntegrityError`` for damaged files, ``UnsupportedError`` for modules that aren't known."""
    if files.find("modules.json") is None:
        return Recipe()
    kinds: list[str] = []
    modes: tuple[str, ...] = ()
    for module in files.config_list("modules.json"):
        kind = str(module.get("type")).rpartition(".")[2]
        kinds.append(kind)
        if kind == "Pooling":
            modes = _modes(files.config(f"{module.get('path')}/config.json"))
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown or kinds[:2] != ["Transformer", "Pooling"]:
        raise UnsupportedError(f"the model makes its vectors with {', '.join(unknown or kinds)}, which myllm can't")
    settings = files.config("sentence_bert_config.json")
    limit = settings.get("max_seq_length")
    return Recipe(
        modes,
        "Normalize" in kinds,
        settings.get("do_lower_case") is True,
        limit if type(limit) is int and limit > 0 else 0,
        _prompt(files.config("config_sentence_transformers.json")),
    )


def _modes(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        found = [named]
    else:
        asked = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True]
        found = [_MODES.get(mode, mode) for mode in asked if f"pooling_mode_{mode}" in config]
    unknown = [mode for mode in found if mode not in _MODES.values()]
    if unknown or not found:
        raise UnsupportedError(f"the model pools its vectors by {', '.join(unknown) or 'nothing'}, which myllm can't")
    return tuple(found)


def _prompt(config: dict[str, Any]) -> str:
    prompts = config.get("prompts")
    found = prompts.get(config.get("default_prompt_name")) if isinstance(prompts, dict) else None
    return found if isinstance(found, str) else ""
