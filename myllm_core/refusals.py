"""Why a prompt can't be run: the same words from every engine that takes tokens."""

from __future__ import annotations

from myllm_core.engine import Sequence
from myllm_core.errors import ContextLengthError, InvalidRequest, MyllmError


def refusal(request: Sequence, vocab_size: int, context_size: int, larger: str) -> MyllmError | None:
    """What is wrong with a prompt, if anything; ``larger`` as in ``too_long``."""
    if len(request.tokens) > context_size:
        return too_long(len(request.tokens), context_size, larger)
    if not request.tokens:
        return InvalidRequest("the prompt is empty; send some text")
    if (min(request.tokens) < 0 and not request.images) or max(request.tokens) >= vocab_size:
        return InvalidRequest("the prompt has a token id that isn't in the model's vocabulary")
    return None


def too_long(count: int, context_size: int, larger: str) -> ContextLengthError:
    """For a text of ``count`` tokens; ``larger`` names what makes the context larger."""
    return ContextLengthError(
        f"{count} tokens don't fit the context of {context_size}; shorten the conversation or load the model with a "
        f"larger {larger}",
        prompt_tokens=count,
        context_size=context_size,
    )
