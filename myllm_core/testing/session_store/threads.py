"""Several threads at one store."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import threading
from collections.abc import Callable

from myllm_core.errors import SessionConflict
from myllm_core.session_store import SessionStore, StoredMessage
from myllm_core.testing.session_store.given import texts, turn


def in_threads(*jobs: Callable[[], object]) -> None:
    """Run the jobs at the same time and raise the first error of any of them."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(job: Callable[[], object]) -> None:
        try:
            start.wait(30)
            job()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=[job], daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a call of the store hangs"
    if errors:
        raise errors[0]


class ThreadTests:
    """Tests of calls at the same time."""

    def test_writers_of_one_session_take_turns(self, store: SessionStore) -> None:
        store.create("s")

        def write(name: str) -> None:
            for number in range(5):
                while True:
                    try:
                        tip = store.get("s").tip
                        store.append(
                            "s", turn(f"{name}{number}?", f"{name}{number}!"), parent=tip, key=f"{name}{number}"
                        )
                        break
                    except SessionConflict:
                        continue

        names = "abcdefgh"
        in_threads(*(lambda name=name: write(name) for name in names))
        path = store.path("s")
        assert store.get("s").message_count == len(path) == 2 * 5 * len(names)
        questions = texts(path)[::2]
        assert texts(path)[1::2] == [question.replace("?", "!") for question in questions]
        for name in names:
            assert [question for question in questions if question[0] == name] == [f"{name}{n}?" for n in range(5)]

    def test_the_same_turn_sent_by_many_threads_is_written_once(self, store: SessionStore) -> None:
        store.create("s")
        answers: list[list[StoredMessage]] = []
        in_threads(*[lambda: answers.append(store.append("s", turn("q", "a"), parent=None, key="k")) for _ in range(8)])
        assert answers == [store.path("s")] * 8
        assert store.get("s").message_count == 2

    def test_readers_see_whole_turns_while_others_write(self, store: SessionStore) -> None:
        store.create("s")
        done = threading.Event()

        def write() -> None:
            tip = None
            try:
                for number in range(30):
                    tip = store.append("s", turn(f"q{number}", f"a{number}"), parent=tip, key=str(number))[-1].id
            finally:
                done.set()

        def read() -> None:
            while not done.is_set():
                path = store.path("s")
                assert len(path) % 2 == 0
                assert texts(path)[::2] == [f"q{number}" for number in range(len(path) // 2)]
                store.list_sessions()
                store.search("q1")

        in_threads(write, read, read)

    def test_threads_that_create_one_session_get_the_same(self, store: SessionStore) -> None:
        created: list[str] = []
        in_threads(*[lambda: created.append(store.create("s").created_at) for _ in range(8)])
        assert len(set(created)) == 1
        assert len(store.list_sessions()) == 1
