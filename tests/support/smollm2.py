"""The real test model, installed where it lies."""

from __future__ import annotations

from pathlib import Path

from myllm_core.models.manifest import MANIFEST, Manifest, ModelFile, write_manifest


def install_smollm2(models_dir: Path, gguf: Path) -> None:
    """Install ``smollm2:135m`` from the fixture's file, without a copy of it."""
    folder = models_dir / "smollm2@135m"
    folder.mkdir(parents=True)
    file = ModelFile(str(gguf), gguf.stat().st_size, "0" * 64)
    about = {"family": "llama", "quantization": "Q4_1", "context_size": 2048, "parameters": 134515008}
    write_manifest(folder / MANIFEST, Manifest("smollm2:135m", "gguf", (file,), **about))
