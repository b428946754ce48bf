from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.errors import InvalidReference
from myllm_core.models.reference import Reference, model_name, parse_reference, safe_name

SCHEMES = frozenset({"hf", "https", "http", "file", "pypi"})

hostile = st.one_of(
    st.text(),
    st.text(alphabet="./\\:@~-ab0 \x00\n%\u202e\uff0e\uff0fKİ", max_size=30),
    st.sampled_from(["../x", "a/../../b", "/etc/passwd", "C:x", "NUL.gguf", "con", "a:aux.txt", "a" * 10_000]),
)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("smollm2", "smollm2:latest"),
        ("SmolLM2:135M", "smollm2:135m"),
        ("qwen2.5-0.5b", "qwen2.5-0.5b:latest"),
        ("a", "a:latest"),
        ("a:b", "a:b"),
        ("x" * 96, "x" * 96 + ":latest"),
    ],
)
def test_names(typed: str, name: str) -> None:
    assert model_name(typed) == name


@pytest.mark.parametrize(
    "typed",
    [
        "", " ", "..", ".", "../x", "..\\x", "/x", "a/b", "a\\b", "C:\\x", "a:", ":a", "a:b:c", "a b", " a", "a ",
        "a\n", "a\0", "a%2fb", "%2e%2e", "\uff41", "a\u202eb", "a..b", "a:b..c", ".a", "a.", "a:b.", "-rf", "--help",
        "*", "a@b", "~", "~root", "con", "CON", "nul.gguf", "a:prn", "com1", "lpt9.x:y", "x" * 97, "x" * 10_000,
        "\ud800",
    ],
)  # fmt: skip
def test_no_names(typed: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        model_name(typed)
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@given(hostile)
def test_a_name_never_leaves_the_models_directory(typed: str) -> None:
    try:
        name = model_name(typed)
    except InvalidReference:
        return
    folder = (Path("/models") / name.replace(":", "@")).resolve()
    assert folder.parent == Path("/models")
    assert model_name(name) == name


@given(hostile)
def test_safe_name_makes_a_name_of_anything(typed: str) -> None:
    name = safe_name(typed)
    assert model_name(name) == name


@pytest.mark.parametrize(
    ("typed", "made"),
    [
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct:latest"),
        ("Qwen3:Q4_K_M", "qwen3:q4_k_m"),
        ("Ünïcode Modél", "n-code-mod-l:latest"),
        ("../../etc", "etc:latest"),
        ("con", "model-con:latest"),
        ("", "model:latest"),
    ],
)
def test_safe_names(typed: str, made: str) -> None:
    assert safe_name(typed) == made


@pytest.mark.parametrize(
    ("typed", "scheme", "rest"),
    [
        ("smollm2:135M", "", "smollm2:135m"),
        ("hf:owner/repo@main:Q4_K_M", "hf", "owner/repo@main:Q4_K_M"),
        ("https://example.com/a.gguf?x=1", "https", "//example.com/a.gguf?x=1"),
        ("file:/x/y.gguf", "file", "/x/y.gguf"),
        ("pypi:a==1/b.gguf", "pypi", "a==1/b.gguf"),
        ("./a.gguf", "file", "./a.gguf"),
        ("../a.gguf", "file", "../a.gguf"),
        ("~/a.gguf", "file", "~/a.gguf"),
        ("/a.gguf", "file", "/a.gguf"),
        ("C:\\a.gguf", "file", "C:\\a.gguf"),
    ],
)
def test_references(typed: str, scheme: str, rest: str) -> None:
    assert parse_reference(typed, SCHEMES) == Reference(scheme, rest, typed)


def test_an_unknown_scheme_names_those_that_are_known() -> None:
    with pytest.raises(InvalidReference, match=r"no installed downloader knows s3: .*file, hf, http, https, pypi"):
        parse_reference("s3://bucket/x", SCHEMES)


@given(hostile)
def test_parsing_gives_a_reference_or_says_no(typed: str) -> None:
    try:
        reference = parse_reference(typed, SCHEMES)
    except InvalidReference:
        return
    assert reference.text == typed
    assert reference.scheme in SCHEMES or model_name(reference.rest) == reference.rest
