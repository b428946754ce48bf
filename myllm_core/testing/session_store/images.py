"""Images of messages."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import json

from myllm_core.session_store import NewMessage, SessionStore, StoredMessage
from myllm_core.sessions.fork import fork_session
from myllm_core.testing.pictures import picture
from myllm_core.testing.session_store.given import said
from myllm_core.types import Image, Message

_RED, _BLUE = picture(3, 2, (255, 0, 0)), picture(2, 3, (0, 0, 255), at=4)


class ImageTests:
    """Messages come back with their images, in order, from everywhere that messages come from."""

    def test_images_come_back_as_they_were_given(self, store: SessionStore) -> None:
        pictures = (_RED, Image(_RED.data, "image/png", 2), _BLUE)
        store.create("s")
        turn = store.append("s", [_shown(*pictures), said("two", "assistant")], parent=None, key="1")
        assert [stored.message.images for stored in turn] == [pictures, ()]
        assert store.path("s") == turn

    def test_images_leave_and_enter_a_store_with_their_messages(self, store: SessionStore) -> None:
        store.create("s")
        store.append("s", [_shown(_RED, _BLUE), said("two", "assistant")], parent=None, key="1")
        document = json.loads(json.dumps(store.export("s")))
        store.import_(document, "copy")
        fork_session(store, "s", "fork", 1)
        assert _images(store.path("copy")) == [(_RED, _BLUE), ()]
        assert _images(store.path("fork")) == [(_RED, _BLUE)]
        assert store.export("copy") == {**document, "id": "copy"}

    def test_images_that_others_show_too_outlive_a_deleted_session(self, store: SessionStore) -> None:
        for session_id in ("s", "t"):
            store.create(session_id)
            store.append(session_id, [_shown(_RED)], parent=None, key="1")
        store.delete("s")
        assert _images(store.path("t")) == [(_RED,)]
        store.create("s")
        store.append("s", [_shown(_RED, _BLUE)], parent=None, key="1")
        store.delete("t")
        assert _images(store.path("s")) == [(_RED, _BLUE)]


def _shown(*images: Image) -> NewMessage:
    return NewMessage(Message("user", "what is this?", images=images))


def _images(path: list[StoredMessage]) -> list[tuple[Image, ...]]:
    return [stored.message.images for stored in path]
