"""Images in prompts: where they stand, what they count, and which templates show them."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest

from myllm_core.chat.pipeline import preparer_of, run_alone
from myllm_core.errors import ContextLengthError, InvalidRequest, TemplateError, UnsupportedError
from myllm_core.images import read_header
from myllm_core.runtime.wire import command_frame, pack_request, read_command, unpack_request
from myllm_core.testing.pictures import picture
from myllm_core.types import ChatRequest, Finish, Image, Message, TextDelta

BEGIN, END = 257, 258
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PARTS = (
    "{% for message in messages %}{{ message['role'] }}: {% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% elif line['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}\n{% endfor %}"
)
FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m['content'][0]['text'] | trim }}{% endfor %}"
MIXED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content | map(attribute='text') | join }}"
    "{% else %}{{ m.role ~ m.content }}{% endif %}|{% endfor %}"
)
RED, BLUE = picture(6, 1, (255, 0, 0)), picture(4, 2, (0, 0, 255))


def rows(image: Image) -> list[int]:
    """What the engine below says of an image: a row for each 2 pixels, between two marks."""
    header = read_header(image.data)
    digest = int.from_bytes(hashlib.sha256(image.data).digest()[:3], "big")
    return [BEGIN, *(-1 - digest * 64 - row for row in range(header.width * header.height // 2)), END]


@pytest.fixture
def seeing(byte_engine: Any) -> Any:
    """A function that makes an engine with vision and a template, which counts the images that it is asked of."""

    def make(template: str | None = CHATML, **facts: Any) -> Any:
        engine = byte_engine(
            chat_template=template, bos_token=None, capabilities=frozenset({"chat", "vision"}), **facts
        )
        engine.asked = []

        def image_tokens(image: Image) -> list[int]:
            engine.asked.append(image)
            return rows(image)

        engine.image_tokens = image_tokens
        return engine

    return make


def shown(text: str, *images: tuple[Image, int], role: Any = "user") -> Message:
    return Message(role, text, images=tuple(Image(image.data, image.media_type, at) for image, at in images))


def plain(tokens: list[int]) -> str:
    """The prompt as text: a row of an image is ``#``."""
    names = {BEGIN: "<|im_start|>", END: "<|im_end|>"}
    return "".join("#" if token < 0 else names.get(token, chr(token % 256)) for token in tokens)


def marks(image: Image) -> str:
    return plain(rows(image))


def test_images_stand_where_they_were_put(seeing: Any) -> None:
    engine = seeing()
    message = shown("compare with .", (BLUE, 13), (RED, 8), (RED, 8))
    prepared = preparer_of(engine).prepare(ChatRequest((message,)))
    expected = f"compare {marks(RED)}{marks(RED)}with {marks(BLUE)}."
    assert plain(prepared.tokens) == f"<|im_start|>user\n{expected}<|im_end|>\n"
    assert [image.data for image in prepared.images] == [RED.data, RED.data, BLUE.data]
    negative = [token for token in prepared.tokens if token < 0]
    assert negative == [token for image in (RED, RED, BLUE) for token in rows(image) if token < 0]


def test_an_image_needs_no_text(seeing: Any) -> None:
    prepared = preparer_of(seeing()).prepare(ChatRequest((shown("", (RED, 0)),)))
    assert plain(prepared.tokens) == f"<|im_start|>user\n{marks(RED)}<|im_end|>\n"


def test_what_is_like_a_mark_stays_text(seeing: Any) -> None:
    texts = ("\ufdd0\ufdd1\ufdd20\ufdd2", "<|im_end|>", "\ufdd30\ufdd3")
    prepared = preparer_of(seeing()).prepare(ChatRequest(tuple(shown(text, (RED, 1)) for text in texts)))
    assert len(prepared.images) == 3
    assert sum(token == END for token in prepared.tokens) == 6
    written = bytes(token for token in prepared.tokens if 0 <= token < 256).decode()
    for text in texts:
        assert text in written


@pytest.mark.parametrize("template", [PARTS, FIRST_PART, MIXED])
def test_templates_that_want_parts_get_them(seeing: Any, template: str) -> None:
    engine = seeing(template)
    talk = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello!"))
    text = plain(preparer_of(engine).prepare(ChatRequest((*talk, Message("user", "Bye")))).tokens)
    positions = [text.index(word) for word in ("Be kind.", "Hi", "Hello!", "Bye")]
    assert positions == sorted(positions)
    text = plain(preparer_of(engine).prepare(ChatRequest((*talk, shown("see ?", (RED, 4))))).tokens)
    assert f"see {marks(RED)}?" in text and text.count("#") == 3


def test_templates_that_take_text_get_text(seeing: Any) -> None:
    both = (
        "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}P{{ m.content[0].text }}"
        "{% endif %}{% endfor %}"
    )
    assert plain(preparer_of(seeing(both)).prepare(ChatRequest((Message("user", "text"),))).tokens) == "Stext"


def test_a_template_that_leaves_an_image_out_is_an_error(seeing: Any) -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    messages = (Message("user", "a"), shown("b", (RED, 0), role="assistant"), Message("user", "c"))
    with pytest.raises(TemplateError, match="leaves out an image"):
        preparer_of(seeing(template)).prepare(ChatRequest(messages))


def test_oldest_turns_are_left_out_with_their_images(seeing: Any) -> None:
    engine = seeing(context_size=60)
    talk = (shown("one", (BLUE, 0)), Message("assistant", "1"), shown("two", (RED, 3)))
    prepared = preparer_of(engine).prepare(ChatRequest(talk))
    assert prepared.context.dropped == (0, 1)
    assert prepared.context.dropped_tokens == len("<user\none><assistant\n1>") + 2 + len(rows(BLUE))
    assert [image.data for image in prepared.images] == [RED.data]
    assert "one" not in plain(prepared.tokens)
    with pytest.raises(ContextLengthError):
        preparer_of(seeing(context_size=15)).prepare(ChatRequest(talk))


def test_a_picture_is_looked_at_once(seeing: Any) -> None:
    engine = seeing(context_size=60)
    preparer = preparer_of(engine)
    talk = (shown("one", (BLUE, 0)), Message("assistant", "1"), shown("two", (RED, 3)))
    for _ in range(3):
        preparer.prepare(ChatRequest(talk))
    assert len(engine.asked) == 2


def test_description_has_the_text_and_the_tokens(seeing: Any) -> None:
    preparer = preparer_of(seeing())
    request = ChatRequest((shown("what is ?", (RED, 8)),))
    prompt = preparer.describe(request)
    assert prompt.text == "<|im_start|>user\nwhat is \ufffc?<|im_end|>\n"
    assert prompt.tokens == preparer.prepare(request).tokens


def test_engine_gets_the_images_of_the_prompt(seeing: Any) -> None:
    engine = seeing()
    events = list(run_alone(engine, ChatRequest((shown("x", (BLUE, 0), (RED, 1)),))))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "ok"
    [sequence] = engine.added
    assert [image.data for image in sequence.images] == [BLUE.data, RED.data]
    assert isinstance(events[-1], Finish) and events[-1].usage.prompt_tokens == len(sequence.tokens)


def test_model_without_vision_refuses(byte_engine: Any) -> None:
    engine = byte_engine(chat_template=CHATML)
    with pytest.raises(UnsupportedError, match="reads no images"):
        list(run_alone(engine, ChatRequest((shown("x", (RED, 0)),))))
    with pytest.raises(UnsupportedError, match="reads no images"):
        engine.image_tokens(RED)


def test_what_the_engine_says_of_a_broken_file_is_said(seeing: Any) -> None:
    engine = seeing()

    def refuse(image: Image) -> list[int]:
        raise InvalidRequest("images: broken")

    engine.image_tokens = refuse
    with pytest.raises(InvalidRequest, match="broken"):
        preparer_of(engine).prepare(ChatRequest((shown("x", (RED, 0)),)))


def test_requests_reach_a_worker_with_their_images() -> None:
    messages = (shown("a", (RED, 0), (BLUE, 1)), Message("assistant", "b"), shown("c", (BLUE, 0)))
    for request in (ChatRequest(messages), ChatRequest(messages[1:2])):
        stream = io.BytesIO(command_frame(["run", 1, pack_request(request)]) + command_frame(["ping", 2]))
        kind, rid, body = read_command(stream)
        assert (kind, rid, unpack_request(body)) == ("run", 1, request)
        assert read_command(stream) == ["ping", 2]
        with pytest.raises(EOFError):
            read_command(stream)
    cut = command_frame(["run", 1, pack_request(ChatRequest(messages))])[:-1]
    with pytest.raises(EOFError):
        read_command(io.BytesIO(cut))
