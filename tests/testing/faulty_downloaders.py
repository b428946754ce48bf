"""Downloaders that each break one rule. ``FAULTS`` says which tests find it, and with which words."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

from myllm_core import Downloader, RemoteFile, Resolution
from myllm_core.errors import InvalidReference, NotFound

FAULTS: dict[str, dict[str, str]] = {}
WEIGHTS = b"weights of sound\n"


class Sound(Downloader):
    """``sound:NAME`` for the names that there are."""

    name = "sound"
    schemes = frozenset({"sound"})

    def resolve(self, reference: Any) -> Resolution:
        if "/" in reference.rest:
            raise InvalidReference("sounds have no folders")
        if reference.rest != "tiny":
            raise NotFound(f"there is no {reference.text}")
        return Resolution((self.file(),), "tiny", "sound:tiny", "1", "MIT", "sound")

    def file(self) -> RemoteFile:
        return RemoteFile("tiny.sound", size=len(WEIGHTS))

    def fetch(self, file: Any, sink: Any) -> None:
        sink.expect(len(WEIGHTS))
        sink.write(WEIGHTS)


DOWNLOADERS: list[Any] = [Sound]


def fails(**tests: str) -> Any:
    """``test_NAME`` fails for the class, with this in its message."""

    def note(cls: Any) -> Any:
        FAULTS[cls.__name__] = {f"test_{test}": words for test, words in tests.items()}
        DOWNLOADERS.append(cls)
        cls.name = cls.__name__.lower()
        cls.schemes = frozenset({cls.name})
        return cls

    return note


class Own(Sound):
    """Sound under the scheme of the class."""

    def resolve(self, reference: Any) -> Resolution:
        from dataclasses import replace

        return replace(super().resolve(reference), source=f"{self.name}:tiny")


@fails(nothing_is_asked_of_the_network_before_resolve="reaches for the network")
class AsksAtOnce(Own):
    def __init__(self) -> None:
        with suppress(OSError), socket.socket() as sock:
            sock.settimeout(0.1)
            sock.connect(("127.0.0.1", 9))


@fails(the_plugin_prints_nothing_when_it_is_asked="standard output")
class PrintsWhenMade(Own):
    def __init__(self) -> None:
        print("here I am")


@fails(a_reference_becomes_files="isn't safe")
class LeadsOut(Own):
    def file(self) -> RemoteFile:
        return RemoteFile("../tiny.sound")


@fails(what_is_said_of_the_model_can_be_kept="is no model name")
class OddName(Own):
    def resolve(self, reference: Any) -> Resolution:
        return Resolution((self.file(),), "../tiny", "oddname:tiny", "1")


@fails(the_source_resolves_to_the_same="there is no")
class OddSource(Own):
    def resolve(self, reference: Any) -> Resolution:
        from dataclasses import replace

        return replace(super().resolve(reference), source="oddsource:other")


@fails(the_pinned_revision_is_the_same="there is no")
class PinsNothing(Own):
    def pin(self, reference: Any, revision: str) -> Any:
        from dataclasses import replace

        return replace(reference, rest=f"tiny@{revision}")


@fails(resolving_prints_nothing="standard output")
class PrintsNatively(Own):
    def resolve(self, reference: Any) -> Resolution:
        os.write(1, b"resolving\n")
        return super().resolve(reference)


@fails(what_isnt_there_is_not_found="KeyError")
class RaisesKeyError(Own):
    def resolve(self, reference: Any) -> Resolution:
        try:
            return super().resolve(reference)
        except NotFound as error:
            raise KeyError(reference.rest) from error


@fails(impossible_references_are_refused="DID NOT RAISE")
class TakesAnything(Own):
    def resolve(self, reference: Any) -> Resolution:
        return Resolution((self.file(),), "tiny", "takesanything:tiny", "1")


@fails(a_file_is_written_as_it_was_announced="not the announced size", a_pull_installs_the_model="bytes")
class WritesLess(Own):
    def fetch(self, file: Any, sink: Any) -> None:
        sink.write(WEIGHTS[:5])


@fails(what_the_sink_raises_ends_the_fetch="DID NOT RAISE")
class CatchesAll(Own):
    def fetch(self, file: Any, sink: Any) -> None:
        with suppress(BaseException):
            super().fetch(file, sink)


@fails(the_class_data_are_usable="schemes must be")
class NoSchemes(Own):
    pass


NoSchemes.schemes = frozenset()
