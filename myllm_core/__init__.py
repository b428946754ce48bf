"""myllm: a local LLM runtime in which every part is a plugin. This package is the core.

Names are imported when they are first used, so ``import myllm_core`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from myllm_core.catalog import CatalogEntry, Source
    from myllm_core.downloader import Downloader, RemoteFile, Resolution, Sink
    from myllm_core.engine import (
        Engine,
        LoadOption,
        MemoryEstimate,
        ModelFacts,
        Sequence,
        Support,
        TokenEngine,
        TokenOut,
    )
    from myllm_core.errors import MyllmError
    from myllm_core.hookspecs import hookimpl
    from myllm_core.models.manifest import Manifest, Model, ModelFile
    from myllm_core.models.reference import Reference
    from myllm_core.options import Options
    from myllm_core.plugins import Plugins, load_plugins
    from myllm_core.runtime.runtime import Runtime
    from myllm_core.session_store import NewMessage, Session, SessionStore, StoredMessage
    from myllm_core.settings import Settings, load_settings
    from myllm_core.types import (
        ChatRequest,
        CompletionRequest,
        ContextReport,
        Embeddings,
        Event,
        Finish,
        Image,
        Message,
        Progress,
        ReasoningDelta,
        Sampling,
        Scores,
        TextDelta,
        Timings,
        Tool,
        ToolCall,
        ToolCallDelta,
        Tools,
        Usage,
    )

__version__ = "0.1.0"

_HOMES = {
    "catalog": ("CatalogEntry", "Source"),
    "downloader": ("Downloader", "RemoteFile", "Resolution", "Sink"),
    "engine": (
        "Engine", "LoadOption", "MemoryEstimate", "ModelFacts", "Sequence", "Support", "TokenEngine", "TokenOut",
    ),
    "errors": ("MyllmError",),
    "hookspecs": ("hookimpl",),
    "models.manifest": ("Manifest", "Model", "ModelFile"),
    "models.reference": ("Reference",),
    "options": ("Options",),
    "plugins": ("Plugins", "load_plugins"),
    "runtime.runtime": ("Runtime",),
    "session_store": ("NewMessage", "Session", "SessionStore", "StoredMessage"),
    "settings": ("Settings", "load_settings"),
    "types": (
        "ChatRequest", "CompletionRequest", "ContextReport", "Embeddings", "Event", "Finish", "Image", "Message",
        "Progress", "ReasoningDelta", "Sampling", "Scores", "TextDelta", "Timings", "Tool", "ToolCall", "ToolCallDelta",
        "Tools", "Usage",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CatalogEntry",
    "ChatRequest",
    "CompletionRequest",
    "ContextReport",
    "Downloader",
    "Embeddings",
    "Engine",
    "Event",
    "Finish",
    "Image",
    "LoadOption",
    "Manifest",
    "MemoryEstimate",
    "Message",
    "Model",
    "ModelFacts",
    "ModelFile",
    "MyllmError",
    "NewMessage",
    "Options",
    "Plugins",
    "Progress",
    "ReasoningDelta",
    "Reference",
    "RemoteFile",
    "Resolution",
    "Runtime",
    "Sampling",
    "Scores",
    "Sequence",
    "Session",
    "SessionStore",
    "Settings",
    "Sink",
    "Source",
    "StoredMessage",
    "Support",
    "TextDelta",
    "Timings",
    "TokenEngine",
    "TokenOut",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Tools",
    "Usage",
    "hookimpl",
    "load_plugins",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'myllm_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"myllm_core.{_HOME[name]}"), name)
