"""The model that ``run`` is asked for: installed, or pulled after asking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from myllm_cli.context import Cli
from myllm_cli.pull import pull_model
from myllm_cli.tables import size_text
from myllm_cli.terminal import ask, clean_line
from myllm_core.errors import InvalidReference, ModelNotFound
from myllm_core.models.reference import Reference, parse_reference

if TYPE_CHECKING:
    from myllm_core.catalog import CatalogEntry


def installed_name(cli: Cli, name: str, pull: bool) -> str:
    """The installed name of a model; one that isn't there is pulled, after a yes when ``pull`` is false.

    Raises ``ModelNotFound`` when it is neither installed nor known, or nobody said yes.
    """
    try:
        return cli.models.get(name).name
    except InvalidReference:
        reference = parse_reference(name, frozenset(cli.plugins.downloaders()))
        if not reference.scheme:
            raise
        installed = _from_source(cli, reference)
        return installed or _pulled(cli, name, pull, None)
    except ModelNotFound:
        entry = _known(cli, name)
        return _pulled(cli, name, pull, entry)


def _from_source(cli: Cli, reference: Reference) -> str | None:
    same = (model.name for model in cli.models.list_models() if model.manifest.source == reference.text)
    return next(same, None)


def _known(cli: Cli, name: str) -> CatalogEntry:
    from myllm_core.transfer.pull import find_entry

    catalog = cli.plugins.catalog()
    entry = find_entry(catalog, name)
    if entry is None:
        cli.models.get(name, [known for entry in catalog for known in (entry.name, *entry.aliases)])  # raises
        raise AssertionError("it wasn't installed a moment ago")
    return entry


def _pulled(cli: Cli, name: str, pull: bool, entry: CatalogEntry | None) -> str:
    if not pull:
        size = f" ({size_text(entry.size)})" if entry and entry.size else ""
        answer = ask(f"{clean_line(name)} isn't installed. Pull it now{size}?", default=True)
        if not answer:
            how = "or say --pull" if answer is None else "when you want it"
            raise ModelNotFound(f"the model {name} is not installed; pull it first: myllm pull {name}, {how}")
    return pull_model(cli, name).name
