"""The library: a loaded model with one cache, its tokens and its logits."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm_core.errors import EngineError, UnsupportedError
from myllm_ctransformers.kinds import Header

if TYPE_CHECKING:
    from myllm_core.sampler import Floats

_LEAD = "\x01"
"""Stands before a text that goes on where another one ended, in vocabularies that put a space before every text."""
_MAX_CHARS = 2000
_SMALL_BATCH, _LARGE_BATCH = 8, 128


class NativeModel:
    """What ``Decoding`` works on: one sequence at a time. The header was checked before."""

    def __init__(self, path: Path, header: Header, n_ctx: int, n_threads: int, use_mmap: bool) -> None:
        """Load the file. Raises ``EngineError``."""
        from ctransformers.llm import ConfigStruct, load_library

        self._lib: Any = load_library(_build())
        self._header = header
        self._threads = n_threads
        self._batch = _LARGE_BATCH if header.is_llama else _SMALL_BATCH
        self._past = 0
        config = ConfigStruct(n_ctx, 0, use_mmap, False)
        name = str(path).encode("utf-8", "surrogateescape")
        self._llm: Any = self._lib.ctransformers_llm_create(name, header.kind.encode(), config)
        if not self._llm:
            raise EngineError(f"ctransformers can't load {path.name} as {header.kind}; see the log for its reason")
        self.vocab_size = int(self._lib.ctransformers_llm_vocab_size(self._llm))
        self.context_size = int(self._lib.ctransformers_llm_context_length(self._llm))
        if self.vocab_size != header.n_vocab or not 0 < self.context_size <= max(n_ctx, header.n_ctx):
            self.free()
            raise EngineError(f"ctransformers read other sizes in {path.name} than it has; it can't be used")
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        self._special = self._pattern()
        self._lead = self._native_tokens(_LEAD) if header.is_llama else []
        self.read(0, [self.bos])  # the first pass measures the memory of a token, and must be short

    def _pattern(self) -> re.Pattern[str] | None:
        texts = sorted(self._header.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @property
    def bos(self) -> int:
        """The token that begins a text."""
        return self._token(self._lib.ctransformers_llm_bos_token_id(self._llm))

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        return self._token(self._lib.ctransformers_llm_eos_token_id(self._llm))

    def _token(self, number: int) -> int:
        return number if 0 <= number < self.vocab_size else 0

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of a piece of a prompt. Raises ``UnsupportedError`` for U+0000, which ends a text for the library.

        With SentencePiece a space is implied where a prompt may begin: in a ``special`` text that starts with a word.
        """
        if "\0" in text:
            raise UnsupportedError("ctransformers can't read the character U+0000; leave it out")
        tokens: list[int] = []
        if special and self._special:
            at = 0
            for found in self._special.finditer(text):
                tokens += self._plain(text[at : found.start()], begins=at == 0)
                tokens.append(self._header.control[found[0]])
                at = found.end()
            return tokens + self._plain(text[at:], begins=at == 0)
        if self._special and (found_one := self._special.search(text)):
            cut = found_one.start() + 1
            return self._plain(text[:cut], begins=False) + self.tokenize(text[cut:], False)
        return self._plain(text, begins=special)

    def _plain(self, text: str, begins: bool) -> list[int]:
        tokens: list[int] = []
        for part in _parts(text):
            if not self._header.is_llama or (begins and not tokens and not part[0].isspace()):
                tokens += self._native_tokens(part)
            else:
                tokens += self._native_tokens(_LEAD + part)[len(self._lead) :]
        return tokens

    def _native_tokens(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = (ctypes.c_int * (len(data) + 16))()  # a token for each byte at most, a space and BOS before them
        count = self._lib.ctransformers_llm_tokenize(self._llm, data, False, room)
        if not 0 <= count <= len(room):
            raise EngineError("ctransformers failed to tokenize a text; load the model again")
        return room[:count]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; empty for control tokens."""
        if not 0 <= token < self.vocab_size:
            return b""
        known = self._pieces[token]
        if known is None:
            control = token in self._header.control.values()
            known = b"" if control else self._lib.ctransformers_llm_detokenize(self._llm, token) or b""
            self._pieces[token] = known
        return known

    def open(self, number: int, room: int) -> int:
        """Begin a sequence: what the cache held is given up."""
        self._past = 0
        return self.context_size

    def read(self, number: int, tokens: list[int]) -> Floats:
        """Put tokens behind the sequence; the logits of what comes next. Raises ``EngineError``."""
        import numpy as np

        if self._llm is None:
            raise EngineError("the model is closed")
        if self._past + len(tokens) > self.context_size:  # the library would write over what it holds
            raise EngineError(f"{self._past + len(tokens)} tokens don't fit the context of {self.context_size}")
        given = (ctypes.c_int * len(tokens))(*tokens)
        done = self._lib.ctransformers_llm_batch_eval(
            self._llm, given, len(tokens), self._past, self._batch, self._threads
        )
        if not done:
            raise EngineError("ctransformers failed to compute the next token; load the model again")
        self._past += len(tokens)
        size = int(self._lib.ctransformers_llm_logits_size(self._llm))
        if size < self.vocab_size:
            raise EngineError("ctransformers gave no logits; load the model again")
        data = self._lib.ctransformers_llm_logits_data(self._llm)
        return np.ctypeslib.as_array(data, (size,))[size - self.vocab_size :].copy()

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """Put one token behind the sequence."""
        return [self.read(number, [token]) for number, token in tokens.items()]

    def cut(self, number: int, length: int) -> bool:
        """Take the sequence back to its first ``length`` tokens."""
        self._past = length
        return True

    def close(self, number: int) -> None:
        """Nothing: the next sequence writes over this one."""

    def free(self) -> None:
        """Give the memory back."""
        if self._llm is not None:
            self._lib.ctransformers_llm_delete(self._llm)
            self._llm = None


@cache
def _build() -> str | None:
    """Which of the library's builds suits this processor; None where the library has to find out.

    It starts other programs for that, which takes seconds on a busy machine, or fails: then it takes the slowest.
    """
    import ctransformers

    cpuinfo = Path("/proc/cpuinfo")
    if (Path(ctransformers.__file__).parent / "lib/local").is_dir() or not cpuinfo.is_file():
        return None
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.M)
    flags = frozenset(found[1].split()) if found else frozenset()
    if not flags:
        return None
    return "avx2" if "avx2" in flags else "avx" if flags >= {"avx", "f16c"} else "basic"


def _parts(text: str) -> Iterator[str]:
    """Cut a long text before words, since the library's regular expressions recurse for each character."""
    at = 0
    while len(text) - at > _MAX_CHARS:
        cut = next(
            (
                place
                for place in range(at + _MAX_CHARS, at + _MAX_CHARS // 2, -1)
                if text[place] == " " and not text[place - 1].isspace() and not text[place + 1 : place + 2].isspace()
            ),
            at + _MAX_CHARS,
        )
        yield text[at:cut]
        at = cut
    if at < len(text):
        yield text[at:]
