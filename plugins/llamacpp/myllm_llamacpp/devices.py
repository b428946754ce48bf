"""The GPUs that llama.cpp computes on, and how much of their memory is free.

``python -m myllm_llamacpp.devices`` prints them, so that the server can ask without loading llama.cpp itself.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from myllm_core.errors import EngineError
from myllm_llamacpp.hardware import has_gpu_backend

# ggml_backend_dev_type of ggml-backend.h
_GPU, _INTEGRATED = 1, 2
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Device:
    """A device by ggml's name, such as ``CUDA0``, and type; bytes of its memory."""

    name: str
    type: int
    free: int
    total: int

    @property
    def unified(self) -> bool:
        """Whether its memory is the machine's own."""
        return self.type == _INTEGRATED or self.name.startswith(("Metal", "MTL"))


def gpus() -> list[Device]:
    """The GPUs that llama.cpp takes, integrated ones only where there is no other. Loads llama.cpp."""
    found = list(all_devices()) if has_gpu_backend() else []
    return _taken(found)


def ask_gpus() -> list[Device]:
    """The same, without llama.cpp in this process. Raises ``EngineError`` when they can't be found out."""
    if not has_gpu_backend():
        return []
    try:
        command = [sys.executable, "-m", "myllm_llamacpp.devices"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        found = [Device(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError) as error:
        raise EngineError(
            f"llama.cpp doesn't say what GPUs there are ({error}); load the model with n_gpu_layers=0"
        ) from None
    return _taken(found)


def _taken(devices: list[Device]) -> list[Device]:
    own = [device for device in devices if device.type == _GPU]
    return own or [device for device in devices if device.type == _INTEGRATED][:1]


def all_devices() -> Iterator[Device]:
    """Everything that ggml computes on, the processor too. Loads llama.cpp into this process."""
    from myllm_llamacpp.bindings import library

    library()
    count = _function("ggml_backend_dev_count", ctypes.c_size_t)
    get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    name = _function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    kind = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = _function("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    for number in range(count()):
        device, free, total = get(number), ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        yield Device(name(device).decode(errors="replace"), kind(device), free.value, total.value)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml, in whichever of its libraries it lies."""
    from llama_cpp import _ctypes_extensions, _ggml

    try:
        function = getattr(_ggml.libggml, name)
    except AttributeError:
        base = _ctypes_extensions.load_shared_library("ggml-base", _ggml.libggml_base_path)
        function = getattr(base, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


if __name__ == "__main__":
    print(json.dumps([asdict(device) for device in gpus()]))
