"""llama.cpp's image projector (``libmtmd``): an image in, what stands for it in a prompt, and the rows of that.

Import this module only inside functions: it brings llama.cpp in.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from myllm_core.errors import EngineError, InvalidRequest, UnsupportedError
from myllm_core.models.gguf import GGUF
from myllm_llamacpp.bindings import library
from myllm_llamacpp.context import Floats, Ints
from myllm_llamacpp.model import Model, explain
from myllm_llamacpp.options import LoadSettings

if TYPE_CHECKING:
    import PIL.Image

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_BLANK = 64  # pixels
_TRIAL_SECONDS = 300
_SILENT: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)

_NEED_THE_PROMPT = frozenset({"hunyuanvl", "deepseek4v"})
"""Projectors whose rows depend on what stands before the image."""


@dataclass(slots=True)
class Piece:
    """A piece of what stands for an image: ``tokens`` of the vocabulary, or so many rows.

    The rows take ``positions`` positions of the model. ``places`` are those of each row where that isn't one after the
    other: shape (2, 4, rows), at the begin of a prompt, and what is to be added for each position before it.
    """

    tokens: list[int]
    rows: int = 0
    positions: int = 0
    places: Ints | None = None
    chunk: Any = None


@dataclass(slots=True, weakref_slot=True, eq=False)
class Pieces:
    """All pieces of an image, with its pixels as the encoder wants them, which lie in native memory."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(piece.rows for piece in self.pieces)


class Projector:
    """The encoder that belongs to a model. One thread uses it at a time."""

    def __init__(self, path: Path, header: GGUF, model: Model, settings: LoadSettings, threads: int) -> None:
        """Load it, with ``n_gpu_layers`` on the GPU too. Raises ``EngineError`` when it doesn't fit the model."""
        from llama_cpp import mtmd_cpp

        self._api: Any = mtmd_cpp
        self._lib = library()
        self.name = path.name
        self._vocab_size = model.vocab_size
        self._rows = settings.n_batch
        self.watch: Callable[[object, bool, object], bool] = lambda tensor, is_question, data: not is_question
        self._callback = self._lib.api.ggml_backend_sched_eval_callback(lambda *given: self.watch(*given))
        mtmd_cpp.mtmd_helper_log_set(self._lib.log.callback, None)
        self._check_kind(header)
        about = path.stat()
        _try_elsewhere(path, (about.st_size, about.st_mtime_ns))
        self.handle: Any = self._load(path, model, settings, threads)
        self.non_causal = bool(mtmd_cpp.mtmd_decode_use_non_causal(self.handle, None))
        self.spatial = bool(mtmd_cpp.mtmd_decode_use_mrope(self.handle))
        self.width = int(self._lib.api.llama_model_n_embd_inp(model.handle))
        try:
            self._try()
        except BaseException:
            self.close()
            raise

    def _check_kind(self, header: GGUF) -> None:
        kind = projector_type(header)
        if kind in _NEED_THE_PROMPT:
            raise UnsupportedError(f"{self.name} is of type {kind}, whose images depend on the text before them")
        if not header.metadata.get("clip.has_vision_encoder", False):
            raise UnsupportedError(f"{self.name} reads no images")

    def _load(self, path: Path, model: Model, settings: LoadSettings, threads: int) -> Any:
        params = self._api.mtmd_context_params_default()
        params.use_gpu = settings.n_gpu_layers != 0
        params.print_timings = False
        params.n_threads = threads
        params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attn]
        params.cb_eval = self._callback
        if settings.image_max_tokens:
            params.image_max_tokens = settings.image_max_tokens
        with self._lib.log.capture() as lines:
            handle = self._api.mtmd_init_from_file(str(path).encode("utf-8", "surrogateescape"), model.handle, params)
        if not handle:
            raise explain(lines, f"llama.cpp can't use the projector {self.name}")
        return handle

    def _try(self) -> None:
        """See that the model has the tokens that this projector puts around images."""
        from PIL import Image

        try:
            pieces = self.pieces(Image.new("RGB", (_BLANK, _BLANK))).pieces
        except InvalidRequest as error:
            raise EngineError(f"{self.name} can't be used: {error.message}") from None
        if not all(0 <= token < self._vocab_size for piece in pieces for token in piece.tokens):
            raise EngineError(f"{self.name} marks images with tokens that the model hasn't; take the model's own")

    def pieces(self, image: PIL.Image.Image) -> Pieces:
        """What stands for an image in a prompt. Raises ``InvalidRequest`` for one that can't be used."""
        api = self._api
        data = image.tobytes()
        pixels = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
        marker = api.mtmd_get_marker(self.handle)
        text = api.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        chunks = api.mtmd_input_chunks_init()
        made = Pieces()
        weakref.finalize(made, api.mtmd_input_chunks_free, chunks).atexit = False
        bitmap = api.mtmd_bitmap_init(*image.size, pixels)
        try:
            with self._lib.log.capture() as lines:
                bitmaps = (api.mtmd_bitmap_p_ctypes * 1)(bitmap)
                code = api.mtmd_tokenize(self.handle, chunks, ctypes.byref(text), bitmaps, 1)
        finally:
            api.mtmd_bitmap_free(bitmap)
        if code:
            why = lines[-1].rpartition("error: ")[2][:200] if lines else f"code {code}"
            raise InvalidRequest(f"images: the model can't take this one ({why}); send another")
        for number in range(api.mtmd_input_chunks_size(chunks)):
            made.pieces.append(self._piece(api.mtmd_input_chunks_get(chunks, number)))
        return made

    def _piece(self, chunk: Any) -> Piece:
        api = self._api
        count = int(api.mtmd_input_chunk_get_n_tokens(chunk))
        if api.mtmd_input_chunk_get_type(chunk) == api.MTMD_INPUT_CHUNK_TYPE_TEXT:
            found = api.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(ctypes.c_size_t()))
            return Piece(found[:count])
        if self.non_causal and count > self._rows:
            raise InvalidRequest(
                f"images: this one has {count} rows, which the model reads at once, and a step takes {self._rows}; "
                f"load the model with n_batch={count}, or a smaller image_max_tokens"
            )
        places = self._places(chunk, count) if self.spatial else None
        return Piece([], count, int(api.mtmd_input_chunk_get_n_pos(chunk)), places, chunk)

    def _places(self, chunk: Any, count: int) -> Ints:
        """The positions of the rows in the order of llama.cpp's batch; they are linear in where the image begins."""
        tokens = self._api.mtmd_input_chunk_get_tokens_image(chunk)
        found = []
        for begin in (0, 1):
            places = (self._api.mtmd_decoder_pos * count)()
            self._api.mtmd_helper_image_get_decoder_pos(tokens, begin, places)
            t, x, y, z = np.frombuffer(places, np.int32).reshape(count, 4).T
            found.append(np.array([t, y, x, z], np.int32))
        return np.array([found[0], found[1] - found[0]])

    def encode(self, piece: Piece) -> Floats:
        """The rows of a piece, shape (rows, width). Takes long; raises ``EngineError``."""
        with self._lib.log.capture() as lines:
            code = self._api.mtmd_encode_chunk(self.handle, piece.chunk)
        if code:
            raise explain(lines, f"llama.cpp can't encode this image with {self.name}")
        made = self._api.mtmd_get_output_embd(self.handle)
        return np.array(np.ctypeslib.as_array(made, (piece.rows, self.width)), np.float32)

    def close(self) -> None:
        """Free it. Nothing may be encoding."""
        if self.handle is not None:
            self._api.mtmd_free(self.handle)
            self.handle = None


@cache
def _try_elsewhere(path: Path, _about: tuple[int, int]) -> None:
    """Load a file in another process first: llama.cpp ends the process when its tensors don't fit each other.

    Raises ``EngineError`` when it does, not for what llama.cpp refuses.
    """
    try:
        command = [sys.executable, "-m", "myllm_llamacpp.projector", str(path)]
        died = subprocess.run(command, **_SILENT, timeout=_TRIAL_SECONDS).returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"the projector {path.name} can't be tried out ({error}); load with mmproj=off") from None
    if died:
        raise EngineError(
            f"the projector {path.name} makes llama.cpp crash: it is damaged, or no projector; get another"
        )


def _main(path: str) -> None:
    from llama_cpp import mtmd_cpp

    lib = library()
    mtmd_cpp.mtmd_helper_log_set(lib.log.callback, None)
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.n_threads = False, 1
    with lib.log.capture():
        mtmd_cpp.mtmd_init_from_file(path.encode("utf-8", "surrogateescape"), None, params)
    os._exit(0)  # whatever it would free goes with the process


def projector_type(header: GGUF) -> str:
    """What kind of projector a file holds, such as ``mlp`` or ``gemma3``; empty when it doesn't say."""
    metadata = header.metadata
    kind = metadata.get("clip.projector_type") or metadata.get("clip.vision.projector_type") or ""
    return str(kind)


if __name__ == "__main__":
    _main(sys.argv[1])
