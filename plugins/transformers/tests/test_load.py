"""Loading: what is refused, what is asked for, and that nothing beside the model's own files is ever used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from myllm_transformers import engine as engine_module
from myllm_transformers.engine import TransformersEngine

from myllm_core.errors import EngineError, EngineMissing, IntegrityError, InvalidOption, MyllmError
from myllm_core.runtime.choose import load_options
from myllm_core.testing import model_of

OPTIONS = load_options(TransformersEngine, {"n_ctx": 64, "max_sequences": 2, "n_threads": 1})


@pytest.fixture
def llama(tiny: Callable[..., Path]) -> Path:
    """A tiny model of the Llama kind."""
    from transformers import LlamaConfig

    return tiny(llama_config(LlamaConfig))


def llama_config(cls: Any, **more: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return cls(**{"vocab_size": 300, "num_key_value_heads": 2, "max_position_embeddings": 128, **sizes, **more})


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def model(folder: Path) -> Any:
    paths = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.json"))]
    return model_of(*paths, format="safetensors")


def load(folder: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine.load(model(folder), OPTIONS | options, lambda fraction: None)


def test_a_model_of_the_hub_s_layout_is_recognised(llama: Path):
    support = TransformersEngine.probe(model(llama))
    assert (support.score, support.missing) == (80, None)
    assert TransformersEngine.probe(model_of(llama / "model.safetensors", format="gguf")).score == 0
    assert TransformersEngine.probe(model_of(llama / "model.safetensors", format="safetensors")).score == 0


@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Model"}},
        {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}},
        {"_attn_implementation": "somebody/kernel"},
        {"experts_implementation": "somebody/kernel:run"},
    ],
    ids=str,
)
def test_a_config_that_names_code_is_refused_before_transformers_sees_it(llama: Path, values: dict[str, Any]):
    canary = llama / "canary"
    (llama / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')")
    change(llama, **values)
    assert TransformersEngine.probe(model(llama)).score == 0
    with pytest.raises(IntegrityError, match="code"):
        load(llama)
    assert not canary.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**6},
        {"vocab_size": 10**9},
        {"intermediate_size": 10**8},
        {"hidden_size": 2**30},
    ],
    ids=str,
)
def test_sizes_that_the_weights_cannot_have_are_refused_at_once(llama: Path, values: dict[str, Any]):
    change(llama, **values)
    for ask in (TransformersEngine.estimate, lambda m, o: TransformersEngine.load(m, o, lambda fraction: None)):
        with pytest.raises(IntegrityError, match="larger model"):
            ask(model(llama), OPTIONS)


@pytest.mark.parametrize(
    "values", [{"num_attention_heads": 5}, {"num_hidden_layers": 3}, {"vocab_size": 200}, {"model_type": "nonsense"}]
)
def test_a_config_that_doesnt_fit_is_an_error_of_ours(llama: Path, values: dict[str, Any]):
    change(llama, **values)
    with pytest.raises(MyllmError):
        load(llama)


def test_weights_that_arent_there_are_not_made_up(llama: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match="lack weights"):
        load(llama)


def test_files_that_arent_the_models_own_are_never_used(llama: Path):
    """A pickle, an adapter and code lie beside the weights; the manifest doesn't name them."""
    manifest = model(llama)
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.")
    (llama / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    (llama / "modeling_llama.py").write_text("raise SystemExit")
    engine = TransformersEngine.load(manifest, OPTIONS, lambda fraction: None)
    assert engine.facts.vocab_size == 300
    engine.close()


def test_an_index_may_not_lead_out_of_the_folder(llama: Path):
    os.rename(llama / "model.safetensors", llama / "model-00001-of-00002.safetensors")
    (llama / "model-00002-of-00002.safetensors").write_bytes((llama / "model-00001-of-00002.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../elsewhere.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="hasn't"):
        load(llama)


def test_weights_of_any_name_and_in_several_files_are_loaded(llama: Path):
    from safetensors.torch import load_file, save_file

    os.rename(llama / "model.safetensors", llama / "model.fp32.safetensors")
    load(llama).close()
    weights = load_file(llama / "model.fp32.safetensors")
    (llama / "model.fp32.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    for part in set(places.values()):
        some = {name: weights[name] for name, place in places.items() if place == part}
        save_file(some, llama / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    load(llama).close()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "tpu"}, InvalidOption),
        ({"device": "cuda:99"}, EngineError),
        ({"dtype": "float8"}, InvalidOption),
        ({"n_ctx": -1}, InvalidOption),
        ({"max_sequences": 0}, InvalidOption),
        ({"attn_implementation": "somebody/kernel"}, InvalidOption),
        ({"quantization": "magic"}, InvalidOption),
    ],
    ids=str,
)
def test_options_are_honoured_or_refused(llama: Path, options: dict[str, Any], error: type[Exception]):
    with pytest.raises(error):
        load(llama, **options)


def test_the_context_is_what_is_asked_for_and_never_more_than_trained(llama: Path):
    for asked, got in ((64, 64), (1000, 128), (0, 128)):
        engine = load(llama, n_ctx=asked)
        assert engine.facts.context_size == got
        engine.close()


def test_what_is_missing_is_told_with_the_command(llama: Path, monkeypatch: pytest.MonkeyPatch):
    for found, missing in (((), "transformers"), (("transformers",), "torch")):

        def version(name: str, found: tuple[str, ...] = found) -> str:
            if name not in found:
                raise engine_module.PackageNotFoundError(name)
            return "5.9.0"

        monkeypatch.setattr(engine_module, "version", version)
        monkeypatch.setattr(engine_module.importlib.util, "find_spec", lambda name: None)
        support = TransformersEngine.probe(model(llama))
        assert (support.score, support.missing) == (80, missing)
        assert support.install == 'pip install "myllm[transformers]"'
        with pytest.raises(EngineMissing, match="myllm.transformers."):
            load(llama)


def test_a_transformers_that_runs_code_of_configs_is_not_used(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "version", lambda name: "5.2.1")
    assert TransformersEngine.probe(model(llama)).missing == "transformers>=5.3"


def test_a_quantized_model_names_the_package_that_it_needs(llama: Path):
    change(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    support = TransformersEngine.probe(model(llama))
    assert (support.missing, support.install) == ("gptqmodel", "pip install gptqmodel")


@pytest.mark.parametrize(
    "values", [{"is_encoder_decoder": True}, {"architectures": ["BertForSequenceClassification"]}, {"vocab_size": None}]
)
def test_what_neither_writes_nor_makes_embeddings_is_left_to_others(llama: Path, values: dict[str, Any]):
    change(llama, **values)
    support = TransformersEngine.probe(model(llama))
    assert support.score == 0
    with pytest.raises(EngineError, match=support.reason):
        load(llama)


def test_memory_is_estimated_where_it_will_be_taken(llama: Path):
    weights = (llama / "model.safetensors").stat().st_size
    cache = 64 * 2 * (2 * 2 * 8 * 2)  # tokens, sequences; layers, heads, width, keys and values; in elements
    options = OPTIONS | {"n_batch": 1}
    host = TransformersEngine.estimate(model(llama), options | {"device": "cpu"})
    assert host.device == 0
    assert weights + 4 * cache < host.host < 1.5 * (weights + 4 * cache)
    bfloat = TransformersEngine.estimate(model(llama), options | {"device": "cpu", "dtype": "bfloat16"})
    assert host.host / 2.5 < bfloat.host < host.host
    cuda = TransformersEngine.estimate(model(llama), options | {"device": "cuda:0"})
    assert (cuda.host, cuda.device) == (weights, host.host)
