"""Opening a graph in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from myllm_core.errors import EngineError
from myllm_core.machine import free_cores
from myllm_onnx.layout import library_error
from myllm_onnx.options import LoadSettings

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider"}


def open_session(graph: Path, settings: LoadSettings) -> Any:
    """An ``InferenceSession``. Raises ``EngineError``."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_num_threads or free_cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.allow_spinning else "0")
    provider = _PROVIDERS[settings.provider]
    if provider not in onnxruntime.get_available_providers():
        raise EngineError(
            f"this ONNX Runtime has no provider {settings.provider}; install its build for it, or set provider cpu"
        )
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - the library has a class for each kind of failure, below Exception
        raise library_error(f"ONNX Runtime can't load {graph.name}", error) from None
