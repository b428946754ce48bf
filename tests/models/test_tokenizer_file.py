"""Tokenizers as the Hub has them: every byte comes back, and control tokens only come from where they may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from myllm_core.errors import IntegrityError
from myllm_core.models.config_file import scan_config
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.tokenizer_file import TokenizerFile, hub_facts
from myllm_core.testing import model_of

pytest.importorskip("tokenizers")


def flags(number, content, special):
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


@pytest.fixture
def sentencepiece(tmp_path):
    """A vocabulary of Llama's kind: bytes, a few words, and a space that is wanted before the first one."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "<end>",
        "<tool>",
    ]
    data = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [flags(place, words[place], place < 3) for place in (0, 1, 2)]
        + [flags(words.index("<end>"), "<end>", False), flags(words.index("<tool>"), "<tool>", False)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": [["▁", "a"]],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["<end>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, words.index("<end>")]}))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    return tmp_path


def files_of(folder: Path) -> HubFiles:
    return HubFiles(model_of(*sorted(folder.rglob("*.*")), format="safetensors"))


def test_every_text_comes_back(sentencepiece):
    tokenizer = TokenizerFile(sentencepiece / "tokenizer.json")
    for text in ("a", "b", " b", "Grüße 👋🏽\n\tx", "aa  ab ", "<0x41>"):
        for special in (True, False):
            said = b"".join(map(tokenizer.piece, tokenizer.tokenize(text, special))).decode()
            assert said.removeprefix(" ") == text.removeprefix(" ")
    assert tokenizer.tokenize("", True) == []
    assert b"?" in b"".join(map(tokenizer.piece, tokenizer.tokenize("a\ud83d", False)))


def test_the_space_before_the_first_word_is_implied_where_a_prompt_begins_only(sentencepiece):
    tokenizer = TokenizerFile(sentencepiece / "tokenizer.json")
    assert b"".join(map(tokenizer.piece, tokenizer.tokenize("a", True))) == b" a"
    assert b"".join(map(tokenizer.piece, tokenizer.tokenize("a", False))) == b"a"
    assert b"".join(map(tokenizer.piece, tokenizer.tokenize("\na", True))) == b"\na"


def test_control_tokens_come_from_special_text_only(sentencepiece):
    files = files_of(sentencepiece)
    tokenizer = TokenizerFile(files.need("tokenizer.json"), files.special_texts())
    assert set(tokenizer.special_texts) == {"<unk>", "<s>", "</s>", "<end>"}
    assert tokenizer.added_texts == ("<tool>",)
    for text in ("<s>", "</s>", "<end>"):
        [token] = tokenizer.tokenize(text, True)
        assert token == tokenizer.token(text) and tokenizer.piece(token) == b""
        assert token not in tokenizer.tokenize(text, False)
    assert tokenizer.tokenize("<tool>", False) == [tokenizer.token("<tool>")]
    assert tokenizer.piece(tokenizer.token("<tool>")) == b"<tool>"
    assert tokenizer.piece(tokenizer.size + 5) == b""


def test_a_whole_text_has_its_control_tokens_and_is_never_cut(sentencepiece):
    tokens = TokenizerFile(sentencepiece / "tokenizer.json").tokenize_whole("<s> b b b b")
    assert tokens[0] == 1 and 1 not in tokens[1:] and len(tokens) > 5


def test_facts_say_what_the_files_say(sentencepiece):
    files = files_of(sentencepiece)
    tokenizer = TokenizerFile(files.need("tokenizer.json"), files.special_texts())
    facts = hub_facts(files, tokenizer, 32, tokenizer.size, {"chat"})
    assert (facts.bos_token, facts.bos_text, facts.eos_text) == (1, "<s>", "</s>")
    assert facts.eos_tokens == {2, tokenizer.token("<end>")}
    assert (facts.context_size, facts.trained_context, facts.chat_template) == (32, 64, None)
    (sentencepiece / "tokenizer_config.json").write_text(
        json.dumps(
            {"add_bos_token": False, "bos_token": "<s>", "chat_template": [{"name": "default", "template": "T"}]}
        )
    )
    facts = hub_facts(files_of(sentencepiece), tokenizer, 32, tokenizer.size, {"chat"})
    assert (facts.bos_token, facts.chat_template) == (None, "T")
    (sentencepiece / "chat_template.jinja").write_text("J")
    assert files_of(sentencepiece).chat_template() == "J"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"added_tokens": [1]}', '{"model": {"type": "Magic"}}', "\0"])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text or " ")
    with pytest.raises(IntegrityError, match="tokenizer.json"):
        TokenizerFile(path)


def test_only_files_of_the_manifest_are_looked_at(tmp_path):
    for name in ("config.json", "1_Pooling/config.json", "tokenizer_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"of": name}))
    files = HubFiles(model_of(tmp_path / "1_Pooling/config.json", tmp_path / "config.json", format="onnx"))
    assert files.config("config.json") == {"of": "config.json"}
    assert files.config("1_Pooling/config.json") == {"of": "1_Pooling/config.json"}
    assert files.config("tokenizer_config.json") == {} and files.config_list("modules.json") == []
    with pytest.raises(IntegrityError, match="pull the whole repository"):
        files.need("tokenizer_config.json")
    (tmp_path / "config.json").write_text('{"a": [{"auto_map": {"AutoModel": "evil.py"}}]}')
    with pytest.raises(IntegrityError, match="code"):
        HubFiles(model_of(tmp_path / "config.json", format="onnx")).config("config.json")


def test_a_configuration_that_is_a_list_is_scanned_at_a_pull(tmp_path):
    (tmp_path / "data_config.json").write_text('[{"name": "a dataset"}]')
    assert scan_config(tmp_path / "data_config.json") == {}
    (tmp_path / "data_config.json").write_text('[{"auto_map": {"AutoModel": "evil.py"}}]')
    with pytest.raises(IntegrityError, match="code"):
        scan_config(tmp_path / "data_config.json")
