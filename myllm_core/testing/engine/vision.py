"""That an engine which claims to see does, and that one which doesn't says so."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

from dataclasses import replace

import pytest

from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import InvalidRequest, MyllmError, UnsupportedError
from myllm_core.testing.engine.given import EngineCase, EngineFixtures, Pipe, Reply, ask, comparable, question
from myllm_core.testing.pictures import picture
from myllm_core.types import ChatRequest, Image, Message

_RED, _BLUE = picture(64, 48, (220, 20, 30)), picture(64, 48, (10, 30, 230))
_TEXT = 120
"""Tokens of the context that a question without its images may take."""
_MOST = 2**31


class VisionTests(EngineFixtures):
    """Images in messages."""

    @pytest.fixture
    def seer(self, talker: Engine) -> Engine:
        """The loaded engine, when it claims to see."""
        if "vision" not in talker.facts.capabilities:
            pytest.skip("the engine doesn't claim vision; the core refuses images")
        return talker

    @pytest.fixture
    def rows(self, seer: Engine) -> TokenEngine:
        """The loaded engine, when it is a TokenEngine that sees."""
        if not isinstance(seer, TokenEngine):
            pytest.skip("only a TokenEngine says what stands for an image")
        return seer

    def test_images_are_refused_when_vision_isnt_claimed(self, talker: Engine, case: EngineCase) -> None:
        if "vision" in talker.facts.capabilities or not isinstance(talker, TokenEngine):
            pytest.skip("the engine sees, or the core refuses images for it")
        with pytest.raises(UnsupportedError):
            talker.image_tokens(_RED)
        with pytest.raises(UnsupportedError):
            ask(talker, _shown(talker, _RED), case.patience)

    def test_an_image_takes_the_tokens_that_stand_for_it(self, rows: TokenEngine, case: EngineCase) -> None:
        tokens = rows.image_tokens(_RED)
        assert any(token < 0 for token in tokens), "no row of an embedding stands for the image"
        size = rows.facts.vocab_size
        strange = [token for token in tokens if type(token) is not int or not -_MOST <= token < size]
        assert not strange, f"{strange[:3]} are neither of the vocabulary nor rows"
        _room(rows, 2)
        one, two = (
            ask(rows, _shown(rows, *images), case.patience).ended_well().usage.prompt_tokens
            for images in ([_RED], [_RED, _RED])
        )
        assert two - one == len(tokens), "the prompt's tokens aren't those that image_tokens gave"

    def test_equal_images_have_equal_tokens(self, rows: TokenEngine) -> None:
        again = Image(bytes(bytearray(_RED.data)), _RED.media_type)
        assert rows.image_tokens(_RED) == rows.image_tokens(again), "equal images have other tokens each time"
        red, blue = (set(filter(_is_row, rows.image_tokens(image))) for image in (_RED, _BLUE))
        assert not red & blue, "two images have a row's token in common: one would be taken for the other"

    def test_a_reply_depends_on_its_image(self, seer: Engine, case: EngineCase) -> None:
        _room(seer, 1)
        replies = [ask(seer, _shown(seer, image), case.patience) for image in (_RED, _BLUE, _RED)]
        for reply in replies:
            reply.ended_well()
        assert _said(replies[0]) != _said(replies[1]), "the reply is the same for another image"
        assert replies[0].written == replies[2].written, "an image that came in between changes the reply"

    def test_a_reply_depends_on_the_order_of_images(self, seer: Engine, case: EngineCase) -> None:
        _room(seer, 2)
        replies = [ask(seer, _shown(seer, *pair), case.patience) for pair in ([_RED, _BLUE], [_BLUE, _RED])]
        for reply in replies:
            reply.ended_well()
        assert _said(replies[0]) != _said(replies[1]), "the reply is the same for images in another order"

    def test_a_broken_image_is_refused_and_the_engine_goes_on(self, seer: Engine, case: EngineCase) -> None:
        header = _RED.data[:33]
        for data in (header, header + b"\0\0\0\x04IDATnone", _RED.data[: len(_RED.data) // 2]):
            error = _failure(seer, _shown(seer, replace(_RED, data=data)), case)
            assert isinstance(error, InvalidRequest), f"a broken image gives {error!r}, not an InvalidRequest"
        ask(seer, question(), case.patience).ended_well()

    def test_cancelling_while_an_image_is_read_hurts_nobody(self, rows: TokenEngine, case: EngineCase) -> None:
        _room(rows, 1)
        for steps in (0, 1, 2):
            pipe = Pipe(rows, case.patience)
            leaving = pipe.start(_shown(rows, picture(64, 48, (steps, 90, 90))))
            pipe.start(question())
            gone = pipe.cancel_after(leaving, steps)
            assert gone.finish.reason in ("cancelled", "stop", "length")
            pipe.finish()[1].ended_well()
        ask(rows, _shown(rows, _BLUE), case.patience).ended_well()


def _shown(engine: Engine, *images: Image) -> ChatRequest:
    message = Message("user", "What color is this?", images=images)
    return replace(comparable(engine), messages=(message,))


def _is_row(token: int) -> bool:
    return token < 0


def _room(engine: Engine, images: int) -> None:
    """Skip the test when the context has no room for so many images."""
    if isinstance(engine, TokenEngine):
        need = images * len(engine.image_tokens(_RED)) + _TEXT
        if need > engine.facts.context_size:
            pytest.skip(f"{images} images need a context of {need} tokens; load it with a larger one")


def _said(reply: Reply) -> tuple[str, list[float]]:
    """The words, and how likely they were: what a model sees may change only that."""
    return reply.written, [position.chosen.logprob for position in reply.positions]


def _failure(engine: Engine, request: ChatRequest, case: EngineCase) -> MyllmError | None:
    try:
        return ask(engine, request, case.patience).finish.error
    except MyllmError as error:
        return error
