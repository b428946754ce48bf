"""Converting an installed model: written into a staged folder by other processes, installed as a whole.

A GGUF file is first unpacked as the hub has models: ``safetensors`` installs just that, ``onnx`` an export of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from myllm_core import Manifest, Model, ModelFile
from myllm_core.errors import EngineError, InvalidRequest, ModelNotFound, StorageError, UnsupportedError
from myllm_core.models.disk import storage_errors
from myllm_core.models.gguf import read_gguf
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.inspect import inspect_files
from myllm_core.models.reference import model_name
from myllm_core.models.store import ModelStore
from myllm_optimum.files import older_config
from myllm_optimum.gguf_tokenizer import check_kind

Tell = Callable[[str], None]

_BESIDE = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_POOLING = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_WRITES = ("ForCausalLM", "LMHeadModel")
_COPIES = 4  # weights of 16 bits become 32, and those of the embedding may be written twice
_COPIES_OF_PACKED = 12  # weights of 4 bits become 16, and these 32
_EVERY = 5.0  # seconds between signs of life


FORMATS = ("onnx", "safetensors")


def convert_model(
    store: ModelStore, model: Model, name: str | None, *, to: str = "onnx", force: bool, tell: Tell
) -> Model:
    """Install ``model`` in the format ``to``, under ``name`` or its own with ``-onnx`` behind the base, or ``-st``.

    ``tell`` takes lines.

    Whatever ends it early, Ctrl+C too, leaves nothing behind, and the model that had that name as it was. Raises
    ``UnsupportedError`` for a model that can't be converted, ``InvalidRequest`` when the name is taken, ``EngineError``
    when the export fails, ``IntegrityError``, ``StorageError``, ``Overloaded``.
    """
    _check_formats(model, to)
    base, _, tag = model.name.partition(":")
    target = model_name(name or f"{base}-{'onnx' if to == 'onnx' else 'st'}:{tag}")
    with store.lock(target):
        if not force:
            _refuse_taken(store, target)
        staged = store.staging(target)
        try:
            _check_room(staged, model)
            with tempfile.TemporaryDirectory(prefix="myllm-") as folder, storage_errors(f"convert {model.name}"):
                if model.format == "gguf":
                    unpacked = staged if to == "safetensors" else Path(folder)
                    tell(f"Unpacking {model.name}")
                    _run("myllm_optimum.unpacker", [str(model.paths[0]), str(unpacked)], "Unpacking", tell)
                if to == "onnx":
                    _to_onnx(model, Path(folder), staged, tell)
            tell("Installing")
            return store.commit(_manifest(model, target, staged))
        except BaseException:
            store.discard(staged)
            raise


def _check_formats(model: Model, to: str) -> None:
    if model.format not in ("safetensors", "gguf") or model.format == to:
        raise UnsupportedError(
            f"{model.name} is {model.format}; safetensors models can be converted to onnx, "
            "GGUF ones to onnx and safetensors"
        )
    if model.format == "gguf":
        found = read_gguf(model.paths[0]).metadata
        check_kind(lambda key: found.get(key))
    else:
        _task(HubFiles(model))


def _task(files: HubFiles) -> str:
    for needed in ("config.json", "tokenizer.json"):
        files.need(needed)
    names = files.config("config.json").get("architectures")
    writes = any(str(name).endswith(_WRITES) for name in names) if isinstance(names, list) else False
    return "text-generation-with-past" if writes and files.find("modules.json") is None else "feature-extraction"


def _to_onnx(model: Model, folder: Path, staged: Path, tell: Tell) -> None:
    """Export what lies in ``folder`` (an unpacked GGUF file), or the model's files that are laid out there."""
    task = "text-generation-with-past"
    files = HubFiles(model)
    if model.format != "gguf":
        task = _task(files)
        _lay_out(model, files, folder)
    else:
        config = folder / "config.json"
        config.write_text(json.dumps(older_config(json.loads(config.read_text("utf-8")))), encoding="utf-8")
    tell(f"Converting {model.name} for {task}")
    _run("myllm_optimum.exporter", [str(folder), str(staged), task], "Exporting", tell)
    if model.format != "gguf":
        _copy_pooling(files, staged)


def _refuse_taken(store: ModelStore, name: str) -> None:
    try:
        there = store.get(name)
    except ModelNotFound:
        return
    if there.name == name:
        raise InvalidRequest(f"{name} is installed already; say --force to replace it, or --name to choose another")


def _check_room(staged: Path, model: Model) -> None:
    copies = _COPIES_OF_PACKED if model.format == "gguf" else _COPIES
    needed, free = copies * model.manifest.size, shutil.disk_usage(staged).free
    if needed > free:
        raise StorageError(f"converting may take {needed / 1e6:.0f} MB of disk and {free / 1e6:.0f} are free")


def _lay_out(model: Model, files: HubFiles, folder: Path) -> None:
    """A folder for the exporter that has only files of the model that were looked at: no code, pickle or adapter."""
    config = older_config(files.config("config.json"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in _BESIDE:
        path = files.find(name)
        if path is not None:
            if name.endswith("config.json"):
                files.config(name)  # refuses what would make the library run code
            shutil.copy(path, folder / name)
    top = files.need("config.json").parent
    for path in model.paths:
        if path.parent == top and (path.suffix == ".safetensors" or path.name == "model.safetensors.index.json"):
            (folder / path.name).symlink_to(path.resolve())


def _run(module: str, arguments: list[str], doing: str, tell: Tell) -> None:
    """Run a step in a process of its own, whose memory and threads end with it."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    begin = told = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - told > _EVERY:
                    told = time.monotonic()
                    tell(f"{doing}, {told - begin:.0f} s")
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            log.seek(0)
            lines = [line.strip() for line in log.read()[-4000:].splitlines() if line.strip()]
            raise EngineError(f"{doing} failed: {lines[-1][:300] if lines else f'exit {process.returncode}'}")


def _copy_pooling(files: HubFiles, staged: Path) -> None:
    """How an embedding model's vectors become one, which the exporter leaves out."""
    folders = [str(module.get("path")) for module in files.config_list("modules.json")]
    named = [*_POOLING, *(f"{folder}/config.json" for folder in folders if re.fullmatch(r"\w{1,60}", folder))]
    for name in named:
        if path := files.find(name):
            (staged / name).parent.mkdir(exist_ok=True)
            shutil.copy(path, staged / name)


def _manifest(model: Model, name: str, staged: Path) -> Manifest:
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    inspection = inspect_files(staged, names)
    files = tuple(_file(staged, path) for path in inspection.files)
    before = model.manifest
    return replace(
        before,
        name=name,
        format=inspection.format,
        files=files,
        source="",
        revision="",
        quantization="",
        context_size=inspection.context_size or before.context_size,
        load_options={},
        engine="",
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        aliases=(),
    )


def _file(staged: Path, path: str) -> ModelFile:
    with (staged / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelFile(f"{staged.name}/{path}", (staged / path).stat().st_size, digest)
