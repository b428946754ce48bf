"""Session stores that each break one rule. ``FAULTS`` says which tests find it, and with which words.

Sound is the example's store in memory; what it keeps lasts for as long as the process, by folder.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from myllm_echo.store import MemoryStore

from myllm_core import Session
from myllm_core.errors import InvalidRequest
from myllm_core.sessions.document import now

FAULTS: dict[str, dict[str, str]] = {}


class Sound(MemoryStore):
    """Every store of a folder shares its sessions."""

    name = "sound"
    kept: ClassVar[dict[tuple[type, Path], dict[str, Any]]] = {}

    @classmethod
    def open(cls, url: str, data_dir: Path) -> Any:
        made = cls()
        made.__dict__ = cls.kept.setdefault((cls, data_dir), made.__dict__)
        return made


STORES: list[Any] = [Sound]


def fails(**tests: str) -> Any:
    """``test_NAME`` fails for the class, with this in its message."""

    def note(cls: Any) -> Any:
        FAULTS[cls.__name__] = {f"test_{test}": words for test, words in tests.items()}
        STORES.append(cls)
        cls.name = cls.__name__.lower()
        return cls

    return note


# Itself


@fails(the_class_data_are_usable="name must be")
class NoName(Sound):
    pass


NoName.name = "No Name"


@fails(nothing_is_printed="standard output")
class PrintsMessages(Sound):
    def append(self, session_id: str, messages: Any, **more: Any) -> Any:
        print("appending")
        return super().append(session_id, messages, **more)


# Sessions


@fails(create_gives_an_empty_session="smollm2")
class ForgetsTheModel(Sound):
    def create(self, session_id: str, *, model: str = "", title: str = "") -> Any:
        return super().create(session_id, title=title)


@fails(create_again_returns_the_session_that_is_there="Second")
class BeginsAgain(Sound):
    def create(self, session_id: str, **more: Any) -> Any:
        self.sessions.pop(session_id, None)
        return super().create(session_id, **more)


@fails(update_changes_only_what_is_given="== 'm'")
class UpdatesAll(Sound):
    def update(self, session_id: str, *, title: str | None = None, model: str | None = None) -> Any:
        return super().update(session_id, title=title or "", model=model or "")


@fails(times_are_utc_and_close_to_now="utcoffset")
class TimesWithoutZone(Sound):
    def _save(self, session: Any) -> Any:
        return super()._save(replace(session, created_at=session.created_at[:19]))


@fails(each_change_is_the_last_one="for their age")
class KeepsTheTime(Sound):
    def update(self, session_id: str, **changes: Any) -> Any:
        return self._save(
            replace(super().update(session_id, **changes), updated_at=self.sessions[session_id].created_at)
        )


@fails(delete_takes_the_session_and_its_messages_and_nothing_else="kept")
class DeletesAll(Sound):
    def delete(self, session_id: str) -> None:
        super().delete(session_id)
        self.sessions.clear()
        self.messages.clear()


@fails(an_id_can_be_used_again_after_delete="old")
class RemembersTheDead(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.dead: dict[str, str] = {}

    def delete(self, session_id: str) -> None:
        self.dead[session_id] = self.get(session_id).title
        super().delete(session_id)

    def create(self, session_id: str, *, model: str = "", title: str = "") -> Any:
        return super().create(session_id, model=model, title=title or self.dead.get(session_id, ""))


@fails(an_unknown_session_is_not_found="DID NOT RAISE")
class FindsNothing(Sound):
    def path(self, session_id: str, tip: int | None = None) -> Any:
        return super().path(session_id, tip) if session_id in self.sessions else []


@fails(look_alike_ids_are_different_sessions="I am A")
class KnowsNoCase(Sound):
    def create(self, session_id: str, **more: Any) -> Any:
        return super().create(session_id.lower(), **more)

    def get(self, session_id: str) -> Any:
        return super().get(session_id.lower())

    def append(self, session_id: str, messages: Any, **more: Any) -> Any:
        return super().append(session_id.lower(), messages, **more)

    def path(self, session_id: str, tip: int | None = None) -> Any:
        return super().path(session_id.lower(), tip)


@fails(close_may_be_called_twice="closed already")
class ClosesOnce(Sound):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@fails(everything_is_there_after_closing_and_opening="there is no session s")
class ForgetsAll(Sound):
    def close(self) -> None:
        self.sessions.clear()


@fails(two_open_stores_share_the_data="there is no session s")
class KeepsToItself(Sound):
    @classmethod
    def open(cls, url: str, data_dir: Path) -> Any:
        return cls()


# Turns


@fails(append_keeps_every_field="call_1")
class DropsCalls(Sound):
    def _add(self, session_id: str, key: str, new: Any, *rest: Any) -> Any:
        return super()._add(session_id, key, replace(new, message=replace(new.message, tool_calls=())), *rest)


@fails(append_chains_the_messages_and_moves_the_tip="parent_id")
class OneParentForAll(Sound):
    def _add(self, session_id: str, key: str, new: Any, meta: Any, parent: Any, created_at: str) -> Any:
        return super()._add(session_id, key, new, meta, self.sessions[session_id].tip, created_at)


@fails(ids_rise_across_sessions="sorted")
class CountsInEachSession(Sound):
    def _add(self, session_id: str, *rest: Any) -> Any:
        self.last_id = len(self.messages[session_id])
        return super()._add(session_id, *rest)


@fails(a_retry_with_the_same_key_writes_nothing="moved on")
class TakesRetriesForTurns(Sound):
    def append(self, session_id: str, messages: Any, *, parent: Any, key: str) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return super().append(session_id, messages, parent=parent, key=f"{key} {self.calls}")


@fails(a_turn_is_found_by_its_key="assert [] ==", a_retry_after_the_tip_moved_still_returns_the_turn="StoredMessage")
class KnowsThePathOnly(Sound):
    def turn(self, session_id: str, key: str) -> Any:
        path = self.path(session_id)
        return [stored for stored in super().turn(session_id, key) if stored in path]


@fails(a_late_retry_returns_what_the_first_call_wrote="moved on")
class KnowsTheLastTurn(Sound):
    def turn(self, session_id: str, key: str) -> Any:
        found = super().turn(session_id, key)
        return found if found and self.messages[session_id][-1][0] == key else []


@fails(a_key_belongs_to_its_session="in t")
class SharesKeys(Sound):
    def turn(self, session_id: str, key: str) -> Any:
        return [stored for turns in self.messages.values() for used, stored in turns if used == key]


@fails(a_stale_parent_is_a_conflict_and_writes_nothing="DID NOT RAISE")
class TakesAnyParent(Sound):
    def append(self, session_id: str, messages: Any, *, parent: Any, key: str) -> Any:
        return super().append(session_id, messages, parent=self.get(session_id).tip, key=key)


@fails(a_parent_in_another_session_is_a_conflict="DID NOT RAISE")
class TakesAnyMessageForAParent(Sound):
    def append(self, session_id: str, messages: Any, *, parent: Any, key: str) -> Any:
        if any(stored.id == parent for turns in self.messages.values() for _, stored in turns):
            parent = self.get(session_id).tip
        return super().append(session_id, messages, parent=parent, key=key)


@fails(nothing_to_append_and_an_empty_key_are_refused="DID NOT RAISE")
class AppendsNothing(Sound):
    def append(self, session_id: str, messages: Any, *, parent: Any, key: str) -> Any:
        return super().append(session_id, messages, parent=parent, key=key) if messages and key else []


class Titles(Sound):
    """Takes a title from the first message, whatever it is."""

    def title_of(self, session: Any, content: str) -> str:
        raise NotImplementedError

    def append(self, session_id: str, messages: Any, **more: Any) -> Any:
        before = self.get(session_id)
        turn = super().append(session_id, messages, **more)
        self._save(replace(self.get(session_id), title=self.title_of(before, messages[0].message.content)))
        return turn


@fails(the_first_question_becomes_the_title="Be brief.")
class TitlesOfInstructions(Titles):
    def title_of(self, session: Any, content: str) -> str:
        return session.title or content


@fails(a_long_first_question_is_cut_and_a_given_title_stays="<= 60")
class LongTitles(Titles):
    def title_of(self, session: Any, content: str) -> str:
        return session.title or content


@fails(odd_text_comes_back_as_it_was_or_is_refused="stored.message")
class Strips(Sound):
    def _add(self, session_id: str, key: str, new: Any, *rest: Any) -> Any:
        bare = replace(new.message, content=new.message.content.rstrip())
        return super()._add(session_id, key, replace(new, message=bare), *rest)


@fails(an_odd_title_comes_back_as_it_was_or_is_refused="title")
class StripsTitles(Sound):
    def update(self, session_id: str, *, title: str | None = None, model: str | None = None) -> Any:
        return super().update(session_id, title=title if title is None else title.strip(), model=model)


@fails(meta_that_is_no_json_is_refused="DID NOT RAISE")
class DropsMeta(Sound):
    def append(self, session_id: str, messages: Any, **more: Any) -> Any:
        return super().append(session_id, [replace(new, meta={}) for new in messages], **more)


@fails(a_message_of_five_million_characters="a long text was cut")
class Cuts(Sound):
    def _add(self, session_id: str, key: str, new: Any, *rest: Any) -> Any:
        short = replace(new.message, content=new.message.content[:1_000_000])
        return super()._add(session_id, key, replace(new, message=short), *rest)


@fails(two_thousand_messages_stay_in_order="another order")
class SortsIdsAsText(Sound):
    def path(self, session_id: str, tip: int | None = None) -> Any:
        return sorted(super().path(session_id, tip), key=lambda stored: str(stored.id))


# The tree


@fails(regenerate_keeps_the_old_answer_as_a_branch="has no message")
class CutsBranches(Sound):
    def set_tip(self, session_id: str, message_id: int | None) -> None:
        super().set_tip(session_id, message_id)
        path = self.path(session_id)
        self.messages[session_id] = [pair for pair in self.messages[session_id] if pair[1] in path]


@fails(an_edited_first_question_starts_a_second_root="None")
class OneRoot(Sound):
    def set_tip(self, session_id: str, message_id: int | None) -> None:
        super().set_tip(session_id, self.messages[session_id][0][1].id if message_id is None else message_id)


@fails(a_fork_in_the_middle_shares_what_came_before="StoredMessage")
class OneLine(Sound):
    def path(self, session_id: str, tip: int | None = None) -> Any:
        last = [stored.id for stored in super().path(session_id, tip)[-1:]]
        return [stored for _, stored in self.messages[session_id] if last and stored.id <= last[0]]


@fails(a_tip_must_be_a_message_of_the_session="DID NOT RAISE")
class TakesAnyTip(Sound):
    def set_tip(self, session_id: str, message_id: int | None) -> None:
        self._save(replace(self.get(session_id), tip=message_id))


# List and search


@fails(the_list_has_the_last_changed_first="four")
class ListsByAge(Sound):
    def _save(self, session: Any) -> Any:
        self.sessions[session.id] = session
        return session


@fails(the_list_has_pages="s6")
class OnePage(Sound):
    def list_sessions(self, *, limit: int = 50, offset: int = 0) -> Any:
        return super().list_sessions(limit=limit)


@fails(search_finds_words_in_messages_and_titles="title")
class SearchesNoTitles(Sound):
    def search(self, text: str, *, limit: int = 50) -> Any:
        return [hit for hit in super().search(text, limit=limit) if self.messages[hit[0].id]]


@fails(search_wants_all_words_in_one_text="red apples")
class AnyWordWillDo(Sound):
    def search(self, text: str, *, limit: int = 50) -> Any:
        found = {hit[0].id: hit for word in text.split() for hit in super(AnyWordWillDo, self).search(word)}
        return list(found.values())[:limit]


@fails(search_gives_each_session_once_and_at_most_the_limit="s0")
class EveryHit(Sound):
    def search(self, text: str, *, limit: int = 50) -> Any:
        return [hit for hit in super().search(text, limit=limit) for _ in self.messages[hit[0].id]]


@fails(search_follows_changes_of_the_title="elephant")
class SearchesFirstTitles(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}

    def create(self, session_id: str, *, model: str = "", title: str = "") -> Any:
        self.first.setdefault(session_id, title)
        return super().create(session_id, model=model, title=title)

    def search(self, text: str, *, limit: int = 50) -> Any:
        kept = self.sessions
        self.sessions = {name: replace(session, title=self.first[name]) for name, session in kept.items()}
        try:
            return super().search(text, limit=limit)
        finally:
            self.sessions = kept


@fails(a_long_text_has_a_short_excerpt="< 1000")
class WholeTexts(Sound):
    def search(self, text: str, *, limit: int = 50) -> Any:
        return [(session, self.path(session.id)[0].message.content) for session, _ in super().search(text, limit=limit)]


@fails(search_takes_text_never_a_pattern="plain")
class Patterns(Sound):
    def search(self, text: str, *, limit: int = 50) -> Any:
        listed = [(session, "") for session in self.list_sessions() if text and fnmatch("alpha bravo", text)]
        return super().search(text, limit=limit) or listed


# Export and import


@fails(an_export_makes_the_same_session_under_another_id="2000-01-01")
class ImportsWithNewTimes(Sound):
    def import_(self, document: Any, session_id: str | None = None) -> Any:
        return self._save(replace(super().import_(document, session_id), created_at="2000-01-01T00:00:00+00:00"))


@fails(an_export_brings_a_deleted_session_back="session.tip > tip")
class UsesIdsAgain(Sound):
    def delete(self, session_id: str) -> None:
        super().delete(session_id)
        self.last_id = max((stored.id for turns in self.messages.values() for _, stored in turns), default=0)


@fails(a_retry_after_an_import_writes_nothing="message_count")
class LosesKeys(Sound):
    def import_(self, document: Any, session_id: str | None = None) -> Any:
        session = super().import_(document, session_id)
        self.messages[session.id] = [("", stored) for _, stored in self.messages[session.id]]
        return session


@fails(an_import_under_a_taken_id_is_a_conflict="DID NOT RAISE")
class ImportsOverWhatIsThere(Sound):
    def import_(self, document: Any, session_id: str | None = None) -> Any:
        self.sessions.pop(session_id or document["id"], None)
        return super().import_(document, session_id)


@fails(a_document_made_by_hand_is_taken="KeyError: 'title'")
class WantsEveryField(Sound):
    def import_(self, document: Any, session_id: str | None = None) -> Any:
        return self.update(super().import_(document, session_id).id, title=document["title"])


@fails(a_wrong_document_is_refused_whole="DID NOT RAISE")
class BelievesDocuments(Sound):
    def import_(self, document: Any, session_id: str | None = None) -> Any:
        try:
            return super().import_(document, session_id)
        except InvalidRequest:
            return self.create("new")


# Images


@fails(images_come_back_as_they_were_given="Image(")
class Blind(Sound):
    def _add(self, session_id: str, key: str, new: Any, *rest: Any) -> Any:
        return super()._add(session_id, key, replace(new, message=replace(new.message, images=())), *rest)


@fails(images_leave_and_enter_a_store_with_their_messages="Image(")
class ExportsNoImages(Sound):
    def export(self, session_id: str) -> Any:
        document = super().export(session_id)
        for message in document["messages"]:
            message.pop("images", None)
        return document


@fails(images_that_others_show_too_outlive_a_deleted_session="Image(")
class DeletesSharedImages(Sound):
    def delete(self, session_id: str) -> None:
        gone = [image for _, stored in self.messages[session_id] for image in stored.message.images]
        super().delete(session_id)
        for turns in self.messages.values():
            for place, (key, stored) in enumerate(turns):
                left = tuple(image for image in stored.message.images if image not in gone)
                turns[place] = (key, replace(stored, message=replace(stored.message, images=left)))


# Threads


@fails(writers_of_one_session_take_turns="assert", the_same_turn_sent_by_many_threads_is_written_once="assert")
class TakesNoTurns(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.lock = nullcontext()

    def _add(self, *parts: Any) -> Any:
        time.sleep(0.002)
        return super()._add(*parts)


@fails(readers_see_whole_turns_while_others_write="% 2")
class WritesOneByOne(Sound):
    def append(self, session_id: str, messages: Any, *, parent: Any, key: str) -> Any:
        turn: list[Any] = []
        for number, new in enumerate(messages):
            turn += super().append(session_id, [new], parent=parent, key=f"{key} {number}")
            parent = turn[-1].id
            time.sleep(0.002)
        return turn


@fails(threads_that_create_one_session_get_the_same="len(set(created))")
class CreatesTwice(Sound):
    turns = count(1)

    def create(self, session_id: str, *, model: str = "", title: str = "") -> Any:
        if session_id not in self.sessions:
            time.sleep(0.03 * next(self.turns))
            self.messages[session_id] = []
            self._save(Session(session_id, title, model, None, now(), now()))
        return self.get(session_id)
