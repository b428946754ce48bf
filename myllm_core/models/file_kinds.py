"""Telling what a file is by what is in it, and refusing what could do harm.

Every file must be of a known kind: weights in GGUF, safetensors, ONNX or old GGML, or text. So nothing that an engine
might unpickle, import or run gets into the models directory, whatever it is called.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.gguf import MAGIC
from myllm_core.models.safetensors_file import MAX_HEADER

_GGML_MAGICS = (b"lmgg", b"fmgg", b"tjgg")
_TEXT_SUFFIXES = frozenset({".json", ".txt", ".md", ".jinja", ".tiktoken", ".yaml", ".yml", ".vocab", ""})
_TOKENIZER_SUFFIXES = frozenset({".model", ".spm"})
_CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".pth", ".so", ".dll", ".dylib"})
_ONNX_DATA = (".onnx.data", ".onnx_data", ".data")
_HEAD = 65_536


def file_kind(path: Path, strict: bool = True) -> str:
    """What a file is, by its content: ``gguf``, ``safetensors``, ``onnx``, ``ggml``, ``text`` or ``data``.

    Raises ``IntegrityError`` for what is no part of a model or could run code, ``StorageError`` when it can't be read.
    Unless ``strict``, data of an unknown kind may pass.
    """
    with storage_errors(f"read {path}"), open_regular(path) as file:
        head = file.read(_HEAD)
    _refuse_what_is_no_model(path, head)
    weights = _weights_kind(path, head)
    if weights:
        return weights
    if path.suffix.lower() in _TEXT_SUFFIXES and _is_text(head):
        return "text"
    if not strict or path.suffix.lower() in _TOKENIZER_SUFFIXES or path.name.endswith(_ONNX_DATA):
        return "data"
    raise IntegrityError(
        f"{path.name} is no kind of model file that myllm knows; choose a GGUF, safetensors or ONNX version"
    )


def _weights_kind(path: Path, head: bytes) -> str:
    suffix = path.suffix.lower()
    if head[:4] == MAGIC or suffix == ".gguf":
        return "gguf"
    if suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER):
        return "safetensors"
    if head[:4] in _GGML_MAGICS:
        return "ggml"
    if suffix == ".onnx" and head[:1] == b"\x08":  # field 1 of ModelProto, ir_version
        return "onnx"
    return ""


def _refuse_what_is_no_model(path: Path, head: bytes) -> None:
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise IntegrityError(f"{path.name} is empty, not a model")
    if start.startswith(b"version https://git-lfs.github.com/"):
        raise IntegrityError(f"{path.name} is a Git LFS pointer, not a model; download the file itself")
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise IntegrityError(f"{path.name} is a web page, not a model; check the address, or whether it needs a login")
    if path.suffix.lower() in _CODE_SUFFIXES:
        raise IntegrityError(f"{path.name} is program code; myllm takes no code that comes with a model")
    if _is_pickle(path, head):
        raise IntegrityError(
            f"{path.name} is a pickle, which could run code when loaded; choose a GGUF or safetensors version"
        )


def _is_pickle(path: Path, head: bytes) -> bool:
    if head[:2] == b"PK":
        return _zip_holds_pickle(path)
    if head[0] == 0x80 and head[1:2] <= b"\x05":
        return True
    return path.suffix.lower() not in _TEXT_SUFFIXES - {""} and _is_old_pickle(head)


def _zip_holds_pickle(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith((".pkl", ".pickle")) for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _is_old_pickle(head: bytes) -> bool:
    """Whether it is a pickle of protocol 0 or 1, which has no magic number but names a global early on."""
    import pickletools

    try:
        return any(opcode.name in ("GLOBAL", "INST") for opcode, _, _ in pickletools.genops(head[:4096]))
    except Exception:  # noqa: BLE001 - whatever isn't a pickle makes the parser stumble in its own way
        return False


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # forgives a character cut at the end
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
