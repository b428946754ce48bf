"""What the installed llama-cpp-python was built for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_GPU_BACKENDS = ("cuda", "metal", "vulkan", "hip", "sycl", "musa", "cann", "opencl")


def has_gpu_backend() -> bool:
    """Whether the installed llama-cpp-python was built for a GPU; looks at its files and imports nothing."""
    found = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (found.submodule_search_locations or ())] if found else []
    names = [file.name for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return any(f"ggml-{backend}" in name for name in names for backend in _GPU_BACKENDS)
