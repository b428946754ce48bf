"""Whether a model scores documents, and what becomes of its number: told from its JSON files, without torch.

A reranker is a classifier with one label, as ``CrossEncoder`` of sentence-transformers has them. Its files name the
function that the number goes through; which of them, and that it is a sigmoid where they don't, is as there.
"""

from __future__ import annotations

from typing import Any

from myllm_core.models.hub_files import HubFiles

SIGMOID = "Sigmoid"
FUNCTIONS = ("Identity", SIGMOID, "Tanh")
"""Classes of torch that may be named; none is ever looked up by a name from a file."""

_TORCH = "torch.nn."
_SCORES = "ForSequenceClassification"


def scores_documents(files: HubFiles) -> bool:
    """Whether the files are those of a classifier with one label."""
    config = files.config("config.json")
    names = config.get("architectures")
    judges = isinstance(names, list) and bool(names) and all(str(name).endswith(_SCORES) for name in names)
    return judges and _labels(config) == 1


def _labels(config: dict[str, Any]) -> int:
    """How many labels transformers gives such a model."""
    count, named = config.get("num_labels"), config.get("id2label")
    if type(count) is int:
        return count
    return len(named) if isinstance(named, dict) else 2


def function_of(files: HubFiles) -> str:
    """The function that makes a score of the model's number, by the name of its class; not always one of ``FUNCTIONS``.

    ``config_sentence_transformers.json`` comes first, then ``config.json``, as sentence-transformers writes them since
    version 5.4, since 4.0, and before.
    """
    config = files.config("config.json")
    inner = config.get("sentence_transformers")
    named = [
        files.config("config_sentence_transformers.json").get("activation_fn"),
        inner.get("activation_fn") if isinstance(inner, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    ]
    found = next((str(name) for name in named if name), _TORCH + SIGMOID)
    return found.rpartition(".")[2] if found.startswith(_TORCH) else found


def refusal_to_score(files: HubFiles) -> str:
    """Why the engine can't give such a model's scores; empty when it can."""
    function = function_of(files)
    if function not in FUNCTIONS:
        return f"the model's scores go through {function[:100]}, which myllm can't ({', '.join(FUNCTIONS)})"
    kinds = [str(module.get("type")).rpartition(".")[2] for module in files.config_list("modules.json")]
    if kinds not in ([], ["Transformer"]):
        return f"the model makes its scores with {', '.join(kinds)[:100]}, which myllm can't"
    if files.config("config_sentence_transformers.json").get("default_prompt_name"):
        return "the model wants a prompt put before what it scores, which myllm doesn't do"
    return ""
