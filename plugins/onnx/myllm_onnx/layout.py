"""Which of a model's files are loaded, and as what: found and checked before any library sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from myllm_core import Model
from myllm_core.errors import EngineError, IntegrityError, OutOfMemory, UnsupportedError
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.onnx_file import Graph, read_interface

Kind = Literal["genai", "decoder", "embedding"]

GENAI_CONFIG = "genai_config.json"
PAST, PRESENT = "past_key_values.", "present."
LOGITS = "logits"
DECODER_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "num_logits_to_keep"})
ENCODER_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
ENCODER_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")

# What GenAI may be told about its session. Others could load a library, or write files.
_SESSION_OPTIONS = frozenset({
    "log_id", "log_severity_level", "log_verbosity_level", "provider_options", "intra_op_num_threads",
    "inter_op_num_threads", "enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level",
})  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The graph to load and the files around it; ``genai`` is the part ``model`` of ``genai_config.json``, if any."""

    kind: Kind
    graph: Path
    files: HubFiles
    genai: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_context(self) -> int:
        """Tokens that the model was trained for; 0 when its files don't say."""
        return _count(self.genai, "context_length") or self.files.trained_context

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a reply, as ``genai_config.json`` says."""
        said = self.genai.get("eos_token_id")
        return frozenset(token for token in (said if isinstance(said, list) else [said]) if type(token) is int)

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of keys and values for each token, at 32 bits each; 0 when the files don't say."""
        decoder = self.genai.get("decoder", {})
        config = self.files.text_config
        heads = _count(decoder, "num_attention_heads") or _count(config, "num_attention_heads", "n_head")
        keys = _count(decoder, "num_key_value_heads") or _count(config, "num_key_value_heads") or heads
        layers = _count(decoder, "num_hidden_layers") or _count(config, "num_hidden_layers", "n_layer")
        width = _count(decoder, "head_size") or _count(config, "head_dim")
        if not width and heads:
            width = _count(config, "hidden_size", "n_embd") // heads
        return 2 * 4 * layers * keys * width


def find_layout(model: Model, file_name: str = "") -> Layout:
    """Tell what kind of model it is, by its configuration and the names in its graph; ``file_name`` chooses a graph.

    Raises ``UnsupportedError`` that says why the engine can't run it, ``IntegrityError`` for files that are damaged or
    name code, ``StorageError``.
    """
    files = HubFiles(model)
    if files.find("tokenizer.json") is None:
        raise UnsupportedError("it has no tokenizer.json; pull a version that has one")
    graph = _chosen(model, file_name)
    genai = files.find(GENAI_CONFIG)
    if genai is not None and (not file_name or graph.parent == genai.parent):
        return _genai_layout(model, files, genai.parent)
    return Layout(_kind(graph, read_interface(graph)), graph, files)


def _chosen(model: Model, file_name: str) -> Path:
    graphs = [path for path in model.paths if path.suffix == ".onnx"]
    if not graphs:
        raise UnsupportedError("it has no ONNX file; pull a version that has one")
    named = [path for path in graphs if path.name == file_name or not file_name]
    if not named:
        known = ", ".join(dict.fromkeys(path.name for path in graphs))
        raise UnsupportedError(f"it has no ONNX file {file_name[:80]}; there are: {known[:300]}")
    return named[0]


def _kind(graph: Path, names: Graph) -> Kind:
    inputs, outputs = set(names.inputs), set(names.outputs)
    past = {name for name in inputs if name.startswith(PAST)}
    if LOGITS in outputs and not past:
        raise UnsupportedError(f"{graph.name} keeps no past keys and values; export it for text-generation-with-past")
    known = DECODER_INPUTS if past else ENCODER_INPUTS
    strange = sorted(inputs - known - past)
    if strange or not {"input_ids", "attention_mask"} <= inputs:
        reason = f"it wants {', '.join(strange)[:120]}" if strange else f"it has no {sorted(known)[0]}"
        raise UnsupportedError(f"{graph.name} isn't a plain decoder or text encoder: {reason}")
    if past and LOGITS in outputs:
        return "decoder"
    if not past and outputs & set(ENCODER_OUTPUTS):
        return "embedding"
    raise UnsupportedError(f"{graph.name} gives neither {LOGITS} nor one of {', '.join(ENCODER_OUTPUTS)}")


def _genai_layout(model: Model, files: HubFiles, folder: Path) -> Layout:
    genai = files.config(GENAI_CONFIG).get("model")
    decoder = genai.get("decoder") if isinstance(genai, dict) else None
    if not isinstance(genai, dict) or not isinstance(decoder, dict):
        raise IntegrityError(f"{GENAI_CONFIG} describes no decoder; pull the model again")
    parts = sorted(key for key, value in genai.items() if isinstance(value, dict) and key != "decoder")
    if parts or "pipeline" in decoder:
        raise UnsupportedError(f"it is made of several graphs ({', '.join(parts) or 'a pipeline'}); take a text model")
    options = decoder.get("session_options")
    strange = sorted(set(options or {}) - _SESSION_OPTIONS) if isinstance(options, dict | None) else ["session_options"]
    if strange:
        raise UnsupportedError(
            f"{GENAI_CONFIG} sets {', '.join(strange)[:120]}, which myllm doesn't allow; remove it from the file"
        )
    name = decoder.get("filename")
    graph = next((path for path in model.paths if path.parent == folder and path.name == name), None)
    if graph is None:
        raise IntegrityError(f"{GENAI_CONFIG} names {str(name)[:80]!r}, which isn't one of the model's files")
    return Layout("genai", graph, files, genai)


def _count(said: Mapping[str, Any], *keys: str) -> int:
    values = (said.get(key) for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 2**31), 0)


def library_error(what: str, error: Exception) -> EngineError:
    """A failure of ONNX Runtime's as one line. It raises plain ``RuntimeError`` or classes of its own."""
    text = " ".join(str(error).split())
    if "allocat" in text or "bad_alloc" in text:
        return OutOfMemory(f"{what}: not enough memory; set a smaller max_length or max_batch_size ({text[:200]})")
    return EngineError(f"{what}: {text[:300]}")
