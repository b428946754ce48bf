"""Which graph is loaded, and the configuration that Optimum is given: all checked before it sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm_core import Model
from myllm_core.errors import UnsupportedError
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.onnx_file import checked_graph, read_interface


@dataclass(frozen=True)
class Export:
    """An Optimum export; ``size`` is in bytes, with external data."""

    graph: Path
    files: HubFiles
    writes: bool
    size: int


def probe_export(model: Model, file_name: str = "") -> tuple[Path, HubFiles, bool]:
    """The graph, the files around it, and whether it writes text. Raises ``UnsupportedError`` with the reason."""
    files = HubFiles(model)
    if files.find("genai_config.json") is not None:
        raise UnsupportedError("it is made for ONNX Runtime GenAI; the engine onnx runs it")
    for name in ("config.json", "tokenizer.json"):
        if files.find(name) is None:
            raise UnsupportedError(f"it has no {name}; pull a version that has one")
    graphs = [path for path in model.paths if path.suffix == ".onnx" and path.name == (file_name or path.name)]
    if not graphs:
        raise UnsupportedError(f"it has no ONNX file {file_name[:80]}".rstrip() + "; pull a version that has one")
    if not isinstance(files.config("config.json").get("model_type"), str):
        raise UnsupportedError("its config.json doesn't say what type of model it is; pull the whole repository")
    graph = read_interface(graphs[0])
    past = any(name.startswith("past_key_values") for name in graph.inputs)
    if "logits" in graph.outputs and past:
        return graphs[0], files, True
    if "logits" not in graph.outputs and {"last_hidden_state", "token_embeddings"} & set(graph.outputs):
        return graphs[0], files, False
    reason = "its graph neither writes text with past keys and values nor gives vectors of tokens"
    raise UnsupportedError(f"{reason}; convert the model again: myllm convert")


def find_export(model: Model, file_name: str = "") -> Export:
    """As ``probe_export``, with the graph looked through. Raises ``IntegrityError`` when it names others' files."""
    graph, files, writes = probe_export(model, file_name)
    _, size = checked_graph(model, graph)
    return Export(graph, files, writes, size)


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` as transformers before 5 reads it, which looks for the rotation's base elsewhere."""
    rotation = config.get("rope_parameters")
    if not isinstance(rotation, dict):
        return config
    older = {"rope_theta": rotation["rope_theta"]} if "rope_theta" in rotation else {}
    if rotation.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in rotation.items() if key != "rope_theta"}
    return {**older, **{key: value for key, value in config.items() if value is not None or key not in older}}
