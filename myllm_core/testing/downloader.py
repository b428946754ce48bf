"""What every downloader must do: the docstrings of ``Downloader`` as tests.

::

    from myllm_core.testing import DownloaderCase, DownloaderContract

    class TestMyDownloader(DownloaderContract):
        @pytest.fixture
        def case(self, my_server):
            return DownloaderCase(MyDownloader, "mine:tiny-model", missing=("mine:no-such",), bad=("mine:///",))

The plugin must be installed (``pip install -e .``). No reference may be larger than a test should fetch.
"""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from myllm_core.downloader import Downloader, RemoteFile, Resolution
from myllm_core.errors import InvalidReference, NotFound, StorageError
from myllm_core.models.manifest import read_manifest
from myllm_core.models.reference import Reference, model_name, parse_reference
from myllm_core.models.store import ModelStore
from myllm_core.offers import CHECKS
from myllm_core.plugins import load_plugins
from myllm_core.testing.alone import Look, look, plugin_of
from myllm_core.transfer.paths import checked_paths
from myllm_core.transfer.pull import pull


@dataclass(frozen=True, slots=True)
class DownloaderCase:
    """A downloader, a small model that it can fetch, references of things that aren't there, and impossible ones.

    With ``installs`` False ``good`` is no whole model, and isn't pulled into a store.
    """

    downloader: type[Downloader]
    good: str
    missing: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    installs: bool = True

    def parse(self, text: str) -> Reference:
        """A reference as the core parses it."""
        reference = parse_reference(text, self.downloader.schemes)
        assert reference.scheme in self.downloader.schemes, f"{text} is no reference of this downloader"
        return reference


@dataclass
class MemorySink:
    """Keeps what is written; fails with ``error`` once ``room`` bytes are there."""

    place: Path
    room: int = 2**40
    error: type[BaseException] = StorageError
    size: int | None = None
    data: bytearray = field(default_factory=bytearray)
    messages: list[str] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        assert isinstance(data, bytes | bytearray | memoryview), f"a sink takes bytes, not {type(data).__name__}"
        if len(self.data) + len(data) > self.room:
            raise self.error("the sink is full")
        self.data += data

    def expect(self, size: int) -> None:
        """Note the size."""
        assert type(size) is int and size >= 0
        self.size = size

    def message(self, text: str) -> None:
        """Note the text."""
        self.messages.append(text)

    def folder(self) -> Path:
        """An empty folder."""
        self.place.mkdir(parents=True)
        return self.place


class _Quiet:
    def message(self, text: str) -> None:
        """Nothing."""

    def file(self, path: str, done: int, total: int | None) -> None:
        """Nothing."""


class DownloaderContract:
    """Subclass it and give the fixture ``case``, a ``DownloaderCase``; pytest does the rest."""

    @pytest.fixture
    def case(self) -> DownloaderCase:
        """The downloader and its references: what an author gives."""
        pytest.fail("give the fixture case: DownloaderCase(MyDownloader, 'scheme:reference')")

    @pytest.fixture(scope="class")
    @classmethod
    def kept(cls) -> list[Look]:
        """What the tests of one class share."""
        return []

    @pytest.fixture
    def alone(self, case: DownloaderCase, kept: list[Look]) -> Look:
        """What was seen of the plugin in a fresh process."""
        if not kept:
            kept.append(look(plugin_of("downloaders", case.downloader), "downloaders", case.downloader))
        return kept[0]

    @pytest.fixture
    def downloader(self, case: DownloaderCase) -> Downloader:
        """A downloader."""
        return case.downloader()

    @pytest.fixture
    def reference(self, case: DownloaderCase) -> Reference:
        """The good reference."""
        if not case.good:
            pytest.skip("no reference was given (myllm plugins check NAME --reference REF)")
        return case.parse(case.good)

    @pytest.fixture
    def resolution(self, downloader: Downloader, reference: Reference) -> Resolution:
        """What the good reference means."""
        return downloader.resolve(reference)

    @pytest.fixture
    def own_files(self, resolution: Resolution) -> list[RemoteFile]:
        """The files that the downloader itself writes."""
        files = [file for file in resolution.files if file.url is None]
        if not files:
            pytest.skip("the core fetches the files by their URLs")
        return files

    def test_the_class_data_are_usable(self, case: DownloaderCase) -> None:
        assert CHECKS["downloaders"](case.downloader) == ""

    def test_importing_the_plugin_is_light(self, alone: Look) -> None:
        facts = alone.expect()
        brought = set(facts["heavy_after_import"]) - set(facts["heavy_before"])
        assert not brought, f"importing the plugin imports {', '.join(sorted(brought))}; import it inside resolve"

    def test_nothing_is_asked_of_the_network_before_resolve(self, alone: Look) -> None:
        assert alone.expect()["network"] == [], "importing or making it reaches for the network"

    def test_the_plugin_prints_nothing_when_it_is_asked(self, alone: Look) -> None:
        alone.expect()
        assert alone.printed == "", "standard output belongs to the answer; log, or print to standard error"

    def test_a_reference_becomes_files(self, resolution: Resolution) -> None:
        assert isinstance(resolution, Resolution)
        assert resolution.files and all(isinstance(file, RemoteFile) for file in resolution.files)
        checked_paths(file.path for file in resolution.files)
        for file in resolution.files:
            assert file.url is None or re.match(r"https?://", file.url), "the core fetches http and https"
            assert file.size is None or (type(file.size) is int and file.size >= 0)
            assert file.sha256 is None or re.fullmatch(r"[0-9a-fA-F]{64}", file.sha256)

    def test_what_is_said_of_the_model_can_be_kept(self, resolution: Resolution) -> None:
        model_name(resolution.name)
        for text in (resolution.source, resolution.revision, resolution.licence, resolution.format):
            assert isinstance(text, str) and text.isprintable()

    def test_the_source_resolves_to_the_same(
        self, case: DownloaderCase, downloader: Downloader, resolution: Resolution
    ) -> None:
        assert resolution.source, "without a source a model can't be pulled again"
        assert downloader.resolve(case.parse(resolution.source)) == resolution

    def test_the_pinned_revision_is_the_same(
        self, case: DownloaderCase, downloader: Downloader, resolution: Resolution
    ) -> None:
        pinned = downloader.pin(case.parse(resolution.source), resolution.revision)
        assert isinstance(pinned, Reference) and pinned.scheme in case.downloader.schemes
        again = downloader.resolve(pinned)
        assert (again.files, again.revision) == (resolution.files, resolution.revision)

    def test_resolving_prints_nothing(
        self, downloader: Downloader, reference: Reference, capfd: pytest.CaptureFixture[str]
    ) -> None:
        downloader.resolve(reference)
        assert capfd.readouterr().out == "", "standard output belongs to the answer; log, or print to standard error"

    def test_what_isnt_there_is_not_found(self, case: DownloaderCase, downloader: Downloader, tmp_path: Path) -> None:
        if not case.missing:
            pytest.skip("no references of missing things were given")
        for number, text in enumerate(case.missing):
            with pytest.raises(NotFound):
                for file in downloader.resolve(case.parse(text)).files:
                    downloader.fetch(file, MemorySink(tmp_path / f"{number}"))

    def test_impossible_references_are_refused(self, case: DownloaderCase, downloader: Downloader) -> None:
        if not case.bad:
            pytest.skip("no impossible references were given")
        for text in case.bad:
            with pytest.raises(InvalidReference):
                downloader.resolve(case.parse(text))

    def test_a_file_is_written_as_it_was_announced(
        self, downloader: Downloader, own_files: list[RemoteFile], tmp_path: Path
    ) -> None:
        for number, file in enumerate(own_files):
            first, second = (MemorySink(tmp_path / f"{number}-{turn}") for turn in range(2))
            downloader.fetch(file, first)
            assert len(first.data) == (len(first.data) if file.size is None else file.size), "not the announced size"
            assert first.size in (None, len(first.data)), "not the size that the sink was told to expect"
            assert file.sha256 in (None, hashlib.sha256(first.data).hexdigest())
            downloader.fetch(file, second)
            assert second.data == first.data, "the second time it writes something else"

    @pytest.mark.parametrize("error", [StorageError, KeyboardInterrupt], ids=["full", "interrupted"])
    def test_what_the_sink_raises_ends_the_fetch(
        self, downloader: Downloader, own_files: list[RemoteFile], tmp_path: Path, error: type[BaseException]
    ) -> None:
        with pytest.raises(error):
            downloader.fetch(own_files[0], MemorySink(tmp_path / "room", 0, error))

    def test_a_pull_installs_the_model(self, case: DownloaderCase, reference: Reference, tmp_path: Path) -> None:
        if not case.installs:
            pytest.skip("the reference is no whole model")
        plugin_of("downloaders", case.downloader)
        store = ModelStore(tmp_path / "models")
        plugins = load_plugins(warn=lambda _: None)
        model = pull(reference.text, plugins=plugins, store=store, progress=_Quiet(), name="contract:latest")
        manifest = read_manifest(model.folder / "manifest.json")
        assert [path.stat().st_size for path in model.paths] == [file.size for file in manifest.files]
        assert manifest.source and manifest.format
