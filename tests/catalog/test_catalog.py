"""The built-in catalogue: names that work, references that parse, facts that are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from myllm_core.catalog_builtin import CATALOG
from myllm_core.models.reference import model_name, parse_reference
from myllm_core.options import parse_options
from myllm_core.plugins import load_plugins
from myllm_core.transfer.pull import find_entry

MANUAL = ["tinyllama-1.1b", "phi-2", "llama3-8b", "mistral-7b", "qwen-1.8b", "smollm2"]
ENTRIES = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)


def test_names_and_aliases_are_unique_however_they_are_typed():
    names = [model_name(name) for entry in CATALOG for name in (entry.name, *entry.aliases)]
    assert sorted(names) == sorted(set(names))


@ENTRIES
def test_an_entry_says_what_the_table_shows(entry):
    assert entry.name == model_name(entry.name), "canonical"
    assert entry.description and entry.parameters and entry.licence
    assert 10_000_000 < entry.size < 20_000_000_000
    assert 512 <= entry.context_size <= 131_072
    assert len(entry.description) <= 60
    parse_options(entry.options)


@ENTRIES
def test_sources_are_references_that_the_plugins_take(entry):
    downloaders = load_plugins().downloaders()
    assert entry.sources
    for source in entry.sources:
        reference = parse_reference(source.reference, frozenset(downloaders))
        assert reference.scheme in ("hf", "pypi")
        if reference.scheme == "hf":
            repo, _, file = reference.rest.partition(":")
            assert repo.count("/") == 1 and file.endswith(".gguf"), "one file, so that what is pulled never changes"


def test_the_manuals_names_are_entries():
    assert {model_name(name) for name in MANUAL} <= {
        model_name(name) for entry in CATALOG for name in (entry.name, *entry.aliases)
    }


@pytest.mark.parametrize("name", MANUAL)
def test_a_manuals_name_finds_its_entry(name):
    entry = find_entry(CATALOG, name)
    assert entry is not None and entry.name.startswith(name.split(":")[0])


def test_only_the_wheels_file_is_pinned_since_the_hubs_is_another_quantization():
    smollm2 = find_entry(CATALOG, "smollm2")
    assert [source.reference.split(":")[0] for source in smollm2.sources] == ["hf", "pypi"]
    assert [len(source.sha256) for source in smollm2.sources] == [0, 64]


def test_importing_it_costs_nothing():
    script = (
        "import sys; before = set(sys.modules); import myllm_core.catalog_builtin; "
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['myllm_core', 'myllm_core.catalog', 'myllm_core.catalog_builtin']"
