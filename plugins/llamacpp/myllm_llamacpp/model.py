"""A GGUF file loaded by llama.cpp: its weights, its vocabulary, and what it says of itself."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import compress, repeat
from pathlib import Path
from typing import Any

from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineError, OutOfMemory
from myllm_core.machine import free_memory
from myllm_llamacpp.bindings import library
from myllm_llamacpp.lora import Adapter
from myllm_llamacpp.options import LoadSettings

# llama_token_attr of llama.h
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
_SPECIAL = _UNKNOWN | _CONTROL | _USER_DEFINED

_PIECE_BYTES = 64
_NOT_FOUND = -1

# Some vocabularies are split by std::regex, which recurses with each character and overflows the stack at about 30,000.
_MAX_CHARS = 8000
_LATE_SPACE = re.compile(r"(?s).*\S(?=\s)")

POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""``llama_pooling_type`` by number."""


class Model:
    """Weights and vocabulary. Not safe for two threads at once, except for ``tokenize``."""

    def __init__(self, paths: Sequence[Path], settings: LoadSettings, progress: LoadProgress) -> None:
        """Load the model. ``paths`` are one file or all parts of a split one, in order. Raises ``EngineError``."""
        self._lib = library()
        self._api: Any = self._lib.api
        self.handle: int | None = self._load(paths, settings, progress)
        self._vocab = self._api.llama_model_get_vocab(self.handle)
        self.vocab_size: int = self._api.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        self._space_prefix = False
        lead = self.tokenize("a") if self.vocab_size else []
        self._space_prefix = bool(lead) and self.piece(lead[0]).startswith(b" ")
        self._newline = self._tokens("\n", False) if self._space_prefix else []
        self._adapters: list[tuple[Any, float]] = []

    def _load(self, paths: Sequence[Path], settings: LoadSettings, progress: LoadProgress) -> int:
        watch = _Watch(progress)
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        params.load_mode = self._load_mode(settings)
        params.progress_callback = callback = self._api.llama_progress_callback(watch)
        with self._lib.log.capture() as lines:
            if len(paths) == 1:
                handle = self._api.llama_model_load_from_file(_bytes(paths[0]), params)
            else:
                names = (ctypes.c_char_p * len(paths))(*map(_bytes, paths))
                handle = self._api.llama_model_load_from_splits(names, len(paths), params)
        del callback
        if watch.error is not None:
            if handle:
                self._api.llama_model_free(handle)
            raise watch.error
        if not handle:
            raise explain(lines, f"llama.cpp can't load {paths[0].name}")
        return int(handle)

    def adapt(self, adapters: Iterable[Adapter]) -> None:
        """Load adapters; contexts that are made after this use them. Raises ``EngineError``."""
        for adapter in adapters:
            with self._lib.log.capture() as lines:
                handle = self._api.llama_adapter_lora_init(self.handle, _bytes(adapter.path))
            if not handle:
                raise explain(lines, f"llama.cpp can't load the adapter {adapter.path.name}")
            self._adapters.append((handle, adapter.scale))

    def apply_adapters(self, context: int) -> None:
        """Let a context use the adapters that were loaded."""
        count = len(self._adapters)
        if count:
            handles = (self._api.llama_adapter_lora_p_ctypes * count)(*(handle for handle, _ in self._adapters))
            scales = (ctypes.c_float * count)(*(scale for _, scale in self._adapters))
            self._api.llama_set_adapters_lora(context, handles, count, scales)

    def _load_mode(self, settings: LoadSettings) -> int:
        modes = {
            (True, True): self._api.LLAMA_LOAD_MODE_MMAP_MLOCK,
            (True, False): self._api.LLAMA_LOAD_MODE_MMAP,
            (False, True): self._api.LLAMA_LOAD_MODE_MLOCK,
            (False, False): self._api.LLAMA_LOAD_MODE_NONE,
        }
        return int(modes[settings.use_mmap, settings.use_mlock])

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a piece of a prompt, without BOS or EOS; a character that UTF-8 can't hold becomes ``?``.

        SentencePiece vocabularies want a space before the first word. llama.cpp puts one before every text that it
        tokenizes, but a prompt comes in pieces. So a space is only implied where a prompt may begin: in a ``special``
        (template's or raw) text that starts with no whitespace. Every other piece goes on where the last one ended.
        """
        tokens: list[int] = []
        for part in _parts(text):
            begins = special and not tokens and not part[0].isspace()
            tokens += self._tokens(part, special) if begins or not self._space_prefix else self._inside(part, special)
        return tokens

    def _inside(self, text: str, special: bool) -> list[int]:
        tokens = self._tokens("\n" + text, special)
        lead = len(self._newline)
        return tokens[lead:] if tokens[:lead] == self._newline else self._tokens(text, special)

    def _tokens(self, text: str, special: bool, whole: bool = False) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        found = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), found, room, whole, special)
        if count < 0:
            raise EngineError("llama.cpp can't tokenize this text with the model's vocabulary")
        return found[:count]

    def tokenize_whole(self, text: str) -> list[int]:
        """Token ids of a text that stands alone, with the BOS, EOS, CLS or SEP that the model wants around it."""
        parts = list(_parts(text))
        if len(parts) < 2:
            return self._tokens(text, False, whole=True)
        empty = self._tokens("", False, whole=True)
        bos = 1 if empty and self._api.llama_vocab_get_add_bos(self._vocab) else 0
        return empty[:bos] + self.tokenize(text) + empty[bos:]

    def tokenize_pair(self, query: str, document: str) -> list[int]:
        """Token ids of a query and a document as a reranker reads them, by its template or with what separates texts.

        As llama.cpp's own server puts them, but neither ever becomes a control token.
        """
        template = self._api.llama_model_chat_template(self.handle, b"rerank")
        texts = {"{query}": query, "{document}": document}
        if template:
            parts = re.split(r"(\{query\}|\{document\})", template.decode(errors="replace"))
            each = [self.tokenize(texts.get(part, part), part not in texts) for part in parts if part]
            return [token for tokens in each for token in tokens]
        api, vocab = self._api, self._vocab
        around = self._tokens("", False, whole=True)
        bos = 1 if around and api.llama_vocab_get_add_bos(vocab) else 0
        between = [api.llama_vocab_eos(vocab)] if api.llama_vocab_get_add_eos(vocab) else []
        between += [api.llama_vocab_sep(vocab)] if api.llama_vocab_get_add_sep(vocab) else []
        first, second = self._tokens(query, False), self._tokens(document, False)
        return [*around[:bos], *first, *(between or around[bos:]), *second, *around[bos:]]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; empty for control tokens."""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        convert = self._lib.short.llama_token_to_piece
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = convert(self._vocab, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def text(self, token: int | None) -> str:
        """How the vocabulary writes a token, control tokens too; empty for none."""
        if token is None:
            return ""
        return (self._lib.short.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    @property
    def bos(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        return _token(self._api.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int | None:
        """The token that ends a text, if the vocabulary has one."""
        return _token(self._api.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants BOS in front of a prompt."""
        return bool(self._api.llama_vocab_get_add_bos(self._vocab))

    def end_tokens(self) -> frozenset[int]:
        """All tokens that end a reply: EOS, end of turn, end of message."""
        tokens = range(self.vocab_size)
        return frozenset(compress(tokens, map(self._lib.short.llama_vocab_is_eog, repeat(self._vocab), tokens)))

    def control_texts(self) -> tuple[str, ...]:
        """The texts that only mean something when ``special``: control tokens and the unknown token."""
        return self._texts(_CONTROL | _UNKNOWN)

    def added_texts(self) -> tuple[str, ...]:
        """The texts of tokens that were added by hand and are always matched as a whole."""
        return self._texts(_USER_DEFINED)

    def _texts(self, attributes: int) -> tuple[str, ...]:
        wanted = (token for token, attribute in self._special.items() if attribute & attributes)
        return tuple(text for text in map(self.text, wanted) if text)

    @cached_property
    def _special(self) -> dict[int, int]:
        """The attributes of the tokens that are more than a piece of text."""
        of_each = map(self._lib.short.llama_vocab_get_attr, repeat(self._vocab), range(self.vocab_size))
        return {token: attribute for token, attribute in enumerate(of_each) if attribute & _SPECIAL}

    @property
    def trained_context(self) -> int:
        """Tokens that the model was trained for."""
        return int(self._api.llama_model_n_ctx_train(self.handle))

    @property
    def embedding_width(self) -> int:
        """Numbers in an embedding."""
        return int(self._api.llama_model_n_embd_out(self.handle))

    @property
    def sliding_window(self) -> int:
        """Tokens that the model's windowed layers look back; 0 when it has none."""
        return int(self._api.llama_model_n_swa(self.handle))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the model's file."""
        template = self._api.llama_model_chat_template(self.handle, None)
        return template.decode(errors="replace") if template else None

    @property
    def pooling(self) -> str:
        """How the file says that embeddings are pooled; ``none`` when it doesn't."""
        text = self.meta(f"{self.meta('general.architecture')}.pooling_type")
        return POOLING.get(int(text), "none") if text.isdigit() else "none"

    @property
    def has_encoder(self) -> bool:
        """Whether it is an encoder with or without a decoder, such as T5."""
        return bool(self._api.llama_model_has_encoder(self.handle))

    @property
    def is_diffusion(self) -> bool:
        """Whether it writes all tokens at once instead of one after the other."""
        return bool(self._api.llama_model_is_diffusion(self.handle))

    def meta(self, key: str) -> str:
        """A metadata value as text; empty when there is none."""
        buffer = ctypes.create_string_buffer(256)
        count = self._api.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if count >= 0 else ""

    def close(self) -> None:
        """Free the weights and adapters. Contexts of this model must have been closed before."""
        if self.handle is not None:
            self._api.llama_model_free(self.handle)
            self.handle = None


class _Watch:
    """llama.cpp's progress callback: what the caller's raises stops the loading instead of getting lost in C."""

    def __init__(self, progress: LoadProgress) -> None:
        self._progress = progress
        self.error: BaseException | None = None

    def __call__(self, fraction: float, _data: object) -> bool:
        try:
            self._progress(fraction)
        except BaseException as error:  # noqa: BLE001 - nothing may pass through C; it is raised again after the call
            self.error = error
        return self.error is None


def _parts(text: str) -> Iterable[str]:
    """Cut a long text before spaces, where vocabularies cut it too, into parts that are safe to tokenize."""
    start = 0
    while len(text) - start > _MAX_CHARS:
        late = _LATE_SPACE.match(text, start, start + _MAX_CHARS)
        end = late.end() if late else start + _MAX_CHARS
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _bytes(path: Path) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")


def _token(number: int) -> int | None:
    return None if number == _NOT_FOUND else number


_CAUSES = (
    (r"unknown model architecture: '([^']*)'",
     "this llama.cpp doesn't know the architecture {0!r}; update it: pip install --upgrade llama-cpp-python"),
    (r"unknown pre-tokenizer type: '([^']*)'",
     "this llama.cpp doesn't know the tokenizer {0!r}; update it: pip install --upgrade llama-cpp-python"),
    (r"unknown projector type: (\S+)",
     "this llama.cpp doesn't know projectors of type {0}; update it: pip install --upgrade llama-cpp-python"),
    (r"mismatch between text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)",
     "its rows have {1} numbers and the model reads {0}; take the projector that was made for this model"),
    (r"invalid magic|not a GGUF|failed to read magic", "it isn't a GGUF file; pull the model again"),
    (r"not within the file bounds|corrupted|incomplete|failed to read|unexpectedly reached end",
     "its file is damaged or incomplete; pull the model again"),
    (r"(missing tensor '[^']*'|tensor '[^']*' not found|wrong (?:number of tensors|shape)[^\n]*|key not found[^\n]*)",
     "its file doesn't fit this llama.cpp ({0}); pull it again, or update llama-cpp-python"),
    (r"No such file|failed to open", "its file can't be opened; pull the model again"),
    (r"((?:K|V) cache type \S+ with block size \d+ does not divide \S+)",
     "{0}; choose type_k and type_v f16"),
    (r"(?:error loading model|failed to initialize the context): ([^\n]{1,300})", "{0}"),
)  # fmt: skip
_OUT_OF_MEMORY = re.compile(r"failed to allocate|unable to allocate|out of memory|bad_alloc|cannot allocate", re.I)


def explain(lines: Iterable[str], what: str) -> EngineError:
    """Turn llama.cpp's last messages into one error that says what to do."""
    log = "\n".join(lines)
    if _OUT_OF_MEMORY.search(log):
        needed = max((int(size) for size in re.findall(r"size (?:of )?(\d{4,})", log)), default=0)
        free = free_memory()
        return OutOfMemory(
            f"{what}: not enough memory ({free / 2**20:.0f} MiB are free); set a smaller n_ctx or n_parallel, "
            "fewer n_gpu_layers, or take a smaller model",
            needed=needed,
            free=free,
        )
    for pattern, advice in _CAUSES:
        if found := re.search(pattern, log, re.I):
            return EngineError(f"{what}: {advice.format(*found.groups())}")
    return EngineError(f"{what}: {log.splitlines()[-1][:300] if log else 'it gave no reason'}")
