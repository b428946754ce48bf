"""The engine under test in a runtime: its model installed where a runtime looks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from myllm_core.models.manifest import MANIFEST, Manifest, Model, ModelFile, write_manifest
from myllm_core.models.reference import folder_name
from myllm_core.plugins import load_plugins
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import load_settings
from myllm_core.testing.engine.given import EngineCase


def installed_copy(case: EngineCase, models_dir: Path) -> Model:
    """The case's model in another models directory; its files stay where they are."""
    model = case.model
    files = tuple(
        ModelFile(str(path.resolve()), file.size, file.sha256 or "0" * 64)
        for file, path in zip(model.manifest.files, model.paths, strict=True)
    )
    manifest: Manifest = replace(model.manifest, files=files, engine="", options={})
    folder = models_dir / folder_name(model.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / MANIFEST, manifest)
    return Model(manifest, folder)


def runtime_for(case: EngineCase, folder: Path, **settings: Any) -> Runtime:
    """A runtime that has this model only; ``settings`` go on top of those for tests."""
    installed_copy(case, folder / "models")
    places = {"models_dir": folder / "models", "data_dir": folder / "data"}
    more = {"keep_alive": "forever", "disabled_plugins": [], "engine_options": {}, "max_tokens": 0}
    return Runtime(load_settings(**places, **(more | settings)), load_plugins(warn=lambda _: None))
