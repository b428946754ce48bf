"""What must not be in the repository: traces of one machine, and the package registries' addresses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# put together here, so that this file passes
HOSTS = [".".join(parts) for parts in [("pypi", "org"), ("files", "pythonhosted", "org"), ("registry", "npmjs", "org")]]
PLACES = ["/" + "/".join(parts) + "/" for parts in [("work", "main"), ("work", "shared"), ("root", ".cache")]]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("no git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_registry_or_a_place_of_one_machine() -> None:
    pattern = re.compile("|".join(map(re.escape, [*HOSTS, *PLACES])))
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


def test_no_file_is_large_or_a_product_of_a_build() -> None:
    assert [str(path) for path in tracked() if path.stat().st_size > 500_000] == []
    products = re.compile(r"(^|/)(__pycache__|dist|build|\.venv)/|\.(pyc|whl|gguf|db)$")
    assert [path for path in tracked() if products.search(str(path.relative_to(ROOT)))] == []
