"""Rerankers: the score of each document is what transformers' own classes make of its pair alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from myllm_transformers.engine import TransformersEngine

from myllm_core import Model
from myllm_core.errors import ContextLengthError, EngineError, IntegrityError, MyllmError, UnsupportedError
from myllm_core.models.manifest import Manifest, ModelFile, write_manifest
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from myllm_core.testing import EngineCase, model_of
from myllm_core.testing.engine.abilities import AbilityTests
from myllm_core.testing.engine.declared import DeclaredTests

WORDS = ["hello", "world", "cat", "sat", "mat", "the", "on", "a"]
QUERY = "the cat"
DOCUMENTS = ["a cat sat on the mat", "hello world", "mat", "the world sat hello hello cat a on", ""]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 1}
IDENTITY = "torch.nn.modules.linear.Identity"
Make = Callable[..., Path]


def model_in(folder: Path) -> Model:
    return model_of(*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.json")), format="safetensors")


def tokenizer_of(marks: tuple[str, ...], pair: str) -> Any:
    """A tokenizer of words; ``marks`` are its special tokens, the one for unknown words last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {text: number for number, text in enumerate([*marks, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=marks[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(marks))
    named = [(mark, vocabulary[mark]) for mark in marks]
    single = f"{marks[0]} $A {marks[2]}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=named)
    return tokenizer


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a reranker of random weights: of BERT's kind, of RoBERTa's or a causal one, with changes to its files."""

    def build(kind: str = "Bert", settings: dict[str, Any] | None = None, **changes: Any) -> Path:
        import torch
        import transformers

        torch.manual_seed(7)
        sizes = {**SIZES, "vocab_size": 20, "max_position_embeddings": 40}
        if kind == "Bert":
            tokenizer = tokenizer_of(("[CLS]", "[PAD]", "[SEP]", "[UNK]"), "[CLS] $A [SEP] $B:1 [SEP]:1")
        else:
            tokenizer = tokenizer_of(("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s> </s> $B </s>")
            sizes |= {"max_position_embeddings": 42, "bos_token_id": 0, "eos_token_id": 2}
        sizes |= {"type_vocab_size": 1} if kind == "XLMRoberta" else {}
        sizes |= {"pad_token_id": None if kind == "Mistral" else 1}
        sizes |= {"num_key_value_heads": 2} if kind == "Mistral" else {}
        model = getattr(transformers, f"{kind}ForSequenceClassification")(
            getattr(transformers, f"{kind}Config")(**sizes)
        )
        with torch.no_grad():  # as they are made, small weights make all scores nearly alike
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(8)
        folder = tmp_path / "reranker"
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings or {}))
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        return folder

    return build


def logits(folder: Path, query: str, document: str, kinds: bool) -> float:
    """What transformers' own tokenizer and model make of one pair."""
    import torch
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    # in lists, as CrossEncoder gives them: an empty text that stands alone would be taken for none
    given = tokenizer([query], [document], return_tensors="pt", return_token_type_ids=kinds)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(model(**given).logits.item())


def sigmoid(value: float) -> float:
    import torch

    return float(torch.sigmoid(torch.tensor(value)))


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta", "Mistral"])
def test_a_score_is_what_the_model_makes_of_the_pair_alone(load, make: Make, kind: str):
    folder = make(kind, sbert_ce_default_activation_function=IDENTITY)
    engine = load(folder).engine
    assert engine.facts.capabilities == {"rerank"}
    made = engine.rerank(QUERY, DOCUMENTS * 9)
    expected = [logits(folder, QUERY, document, kind == "Bert") for document in DOCUMENTS]
    assert max(expected) - min(expected) > 0.05, "the documents differ"
    assert made.scores == pytest.approx(expected * 9, abs=1e-5)
    assert made.by == "model" and made.prompt_tokens > 9 * len(DOCUMENTS) * 5
    assert engine.rerank(QUERY, []).scores == []
    if kind == "Bert":
        plain = [logits(folder, QUERY, document, False) for document in DOCUMENTS]
        assert made.scores[:5] != pytest.approx(plain, abs=1e-3), "which text a token is of counts"


@pytest.mark.parametrize(
    ("changes", "other", "raw"),
    [
        ({}, {}, False),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, {}, True),
        ({"sbert_ce_default_activation_function": IDENTITY}, {}, True),
        ({"sbert_ce_default_activation_function": None}, {"activation_fn": IDENTITY}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, {}, False),
    ],
)
def test_the_model_s_own_files_say_what_becomes_of_its_number(load, make: Make, changes, other, raw):
    folder = make(**changes)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(other))
    [score] = load(folder).engine.rerank(QUERY, DOCUMENTS[:1]).scores
    value = logits(folder, QUERY, DOCUMENTS[0], True)
    assert score == pytest.approx(value if raw else sigmoid(value), abs=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
def test_the_longest_pair_is_read_and_a_longer_one_refused(load, make: Make, kind: str):
    engine = load(make(kind)).engine  # 40 positions, of RoBERTa's 42 two are no token's
    around = 3 if kind == "Bert" else 4
    assert engine.facts.context_size == 40
    assert len(engine.rerank(QUERY, ["cat " * (38 - around)]).scores) == 1
    with pytest.raises(ContextLengthError, match="the model takes 40") as error:
        engine.rerank(QUERY, ["mat", "cat " * (39 - around)])
    assert error.value.data == {"input": 1, "prompt_tokens": 41, "context_size": 40}


def test_the_tokenizer_s_files_may_set_a_smaller_limit_and_leave_kinds_out(load, make: Make):
    settings = {"model_max_length": 12, "model_input_names": ["input_ids", "attention_mask"]}
    folder = make(settings=settings, sbert_ce_default_activation_function=IDENTITY)
    engine = load(folder).engine
    assert engine.facts.context_size == 12
    [score] = engine.rerank(QUERY, ["mat"]).scores
    assert score == pytest.approx(logits(folder, QUERY, "mat", False), abs=1e-5)


def test_no_text_becomes_a_control_token(load, make: Make):
    tokenizer = load(make()).engine._parts.tokenizer
    assert tokenizer.tokenize_pair("cat", "mat") == ([0, 6, 2, 8, 2], [0, 0, 0, 1, 1])
    assert tokenizer.tokenize_pair("cat [SEP]", "mat")[0].count(2) == 2


def test_what_a_reranker_cant(load, make: Make, minilm: Path):
    folder = make()
    support = TransformersEngine.probe(model_in(folder))
    assert support.score == 80 and "scores documents" in support.reason
    engine = load(folder).engine
    with pytest.raises(UnsupportedError, match="makes no embeddings"):
        engine.embed(["hello"])
    with pytest.raises(UnsupportedError, match="can't write"):
        engine.step()
    with pytest.raises(UnsupportedError, match="reranker"):
        load(minilm).engine.rerank(QUERY, DOCUMENTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}, "single label"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softplus"}, "Softplus"),
        ({"sbert_ce_default_activation_function": "os.system"}, "os.system"),
        ({"architectures": ["BertForTokenClassification"]}, "judges"),
        ({"auto_map": {"AutoModelForSequenceClassification": "evil.Model"}}, "code of the model's author"),
    ],
)
def test_what_is_no_reranker_is_refused_before_torch_comes_in(make: Make, changes, reason: str):
    model = model_in(make(**changes))
    support = TransformersEngine.probe(model)
    assert support.score == 0 and reason in support.reason
    with pytest.raises(MyllmError, match=reason):
        TransformersEngine.load(model, {}, lambda fraction: None)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config_sentence_transformers.json", {"default_prompt_name": "query", "prompts": {"query": "Q: "}}, "prompt"),
        ("modules.json", [{"type": "x.models.Transformer"}, {"type": "x.models.Dense"}], "Dense"),
    ],
)
def test_what_sentence_transformers_would_do_beside_is_named(make: Make, name: str, content: Any, reason: str):
    folder = make()
    (folder / name).write_text(json.dumps(content))
    support = TransformersEngine.probe(model_in(folder))
    assert support.score == 0 and reason in support.reason


def test_a_head_that_isn_t_in_the_files_is_never_made_of_random_numbers(load, make: Make):
    from safetensors.torch import load_file, save_file

    folder = make()
    weights = load_file(folder / "model.safetensors")
    for lost in ("bert.pooler.dense.weight", "classifier.weight"):
        fewer = {name: values for name, values in weights.items() if name != lost}
        save_file(fewer, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(IntegrityError, match=lost):
            load(folder)
    save_file(
        weights | {"classifier.weight": weights["classifier.weight"] * float("nan")}, folder / "model.safetensors"
    )
    with pytest.raises(EngineError, match="damaged"):
        load(folder).engine.rerank(QUERY, DOCUMENTS)


def test_the_runtime_takes_the_model_s_own_scores(load, make: Make, tmp_path: Path):
    source, folder = make(), tmp_path / "models" / "tiny@latest"
    shutil.copytree(source, folder)
    files = tuple(
        ModelFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )
    write_manifest(folder / "manifest.json", Manifest("tiny:latest", "safetensors", files))

    async def ask() -> Any:
        async with Runtime(Settings(models_dir=tmp_path / "models", data_dir=tmp_path)) as runtime:
            return await runtime.rerank("tiny", QUERY, DOCUMENTS * 10)

    made = asyncio.run(ask())
    own = load(source).engine.rerank(QUERY, DOCUMENTS)
    assert made.by == "model" and made.prompt_tokens == 10 * own.prompt_tokens
    assert made.scores == pytest.approx(own.scores * 10, abs=1e-5)


class TestContract(DeclaredTests, AbilityTests):
    """What concerns a model that only scores documents."""

    @pytest.fixture
    def case(self, make: Make) -> EngineCase:
        return EngineCase(TransformersEngine, model_in(make()), {"n_threads": 1})
