"""Holding a reply to a JSON schema, a regular expression or a grammar: which tokens may come next.

Built on llguidance, which computes a mask over the vocabulary in tens of microseconds. The same for every
TokenEngine: the engine only asks which tokens are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from myllm_core.engine import ModelFacts
from myllm_core.errors import InvalidRequest
from myllm_core.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MAX_GRAMMAR = 1_000_000


class Constraint:
    """The state of one reply under a grammar; it starts to hold when ``active`` is set.

    Used by the pipeline and the engine on the engine's thread. ``allows`` and ``mask`` are what an engine needs
    (see ``myllm_core.engine.TokenMask``).
    """

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size
        self.active = True

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        return not self.active or self._matcher.validate_tokens([token]) == 1

    def mask(self) -> bytes:
        """A bit per token id, the lowest first: whether it may come next. At least as long as the vocabulary."""
        if not self.active:
            return b"\xff" * (self._size // 8 + 1)
        return self._matcher.compute_bitmask()

    def forced(self, token: int) -> list[int]:
        """The tokens that must come after ``token``, which may come next: where a grammar leaves no choice."""
        if not self.active or not self._matcher.consume_token(token):
            return []
        try:
            return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        finally:
            self._matcher.rollback(1)

    def accept(self, token: int) -> None:
        """Go on behind ``token``. Raises ``InvalidRequest`` when the grammar became too complex."""
        if self.active and not self._matcher.consume_token(token):
            raise InvalidRequest(f"the reply can't be held to the grammar: {self._matcher.get_error()[:300]}")

    @property
    def complete(self) -> bool:
        """Whether nothing may come any more."""
        return self.active and self._matcher.is_stopped()


class Constraints:
    """Makes constraints for one model. ``pieces`` gives the bytes of every token, ``tokenize`` plain text's tokens."""

    def __init__(
        self, facts: ModelFacts, pieces: Callable[[], list[bytes]], tokenize: Callable[[str, bool], list[int]]
    ) -> None:
        self._facts = facts
        self._pieces = pieces
        self._tokenize = tokenize
        self._tokenizer: LLTokenizer | None = None

    def make(self, grammar: Grammar, name: str = "") -> Constraint:
        """Compile a grammar, which errors call ``name``. Raises ``InvalidRequest`` that says what is wrong with it."""
        from llguidance import LLMatcher, LLParserLimits

        name = name or _NAMES[grammar.kind]
        if len(grammar.text) > _MAX_GRAMMAR:
            raise InvalidRequest(f"the {name} is longer than a million characters; send a simpler one")
        try:
            source = _compile(grammar)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the {name} can't be used: {error}"[:500]) from None
        limits = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000)
        matcher = LLMatcher(self._llguidance_tokenizer(), source, log_level=0, limits=limits)
        if matcher.is_error():
            problem = " ".join(matcher.get_error().split())
            raise InvalidRequest(f"the {name} can't be used: {problem}"[:500])
        return Constraint(matcher, self._facts.vocab_size)

    def _llguidance_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            vocabulary = _Vocabulary(self._pieces(), sorted(self._facts.eos_tokens), self._tokenize)
            eos = sorted(self._facts.eos_tokens)
            self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=self._facts.vocab_size, eos_token=eos)
        return self._tokenizer


_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}


def _compile(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            schema: dict[str, Any] = json.loads(grammar.text)
            return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


class _Vocabulary:
    """A model's vocabulary in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos: Sequence[int], tokenize: Callable[[str, bool], list[int]]) -> None:
        self.tokens = tokens
        self.eos_token_id = eos[0]
        self.special_token_ids = [i for i, piece in enumerate(tokens) if not piece]
        self._tokenize = tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenize(text.decode() if isinstance(text, bytes) else text, False)
