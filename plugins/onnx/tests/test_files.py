"""What is refused before ONNX Runtime sees it: other people's files, libraries, graphs of another kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from myllm_onnx.engine import OnnxEngine
from myllm_onnx.layout import find_layout
from onnx import TensorProto, helper, numpy_helper

from myllm_core import Model
from myllm_core.errors import IntegrityError, MyllmError, UnsupportedError
from myllm_core.models.onnx_file import checked_graph, read_graph
from myllm_core.runtime.choose import load_options
from myllm_core.testing import model_of

DECODER = ["input_ids", "attention_mask", "past_key_values.0.key"]


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None])


def write_graph(path: Path, inputs: list[str], outputs: list[str], location: str = "", inside: bool = False) -> Path:
    """A graph with those names, with a weight that lies elsewhere, perhaps in the attribute of a node in a branch."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "weight")
    if location:
        onnx.external_data_helper.set_external_data(weight, location)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    nodes = [helper.make_node("Identity", [inputs[0]], [output]) for output in outputs]
    weights = [weight]
    if inside:
        constant = helper.make_node("Constant", [], ["c"], value=weight)
        branch = helper.make_graph([constant], "branch", [], [value("c")])
        nodes.append(helper.make_node("If", ["k"], ["r"], then_branch=branch, else_branch=branch))
        weights = []
    graph = helper.make_graph(nodes, "g", list(map(value, inputs)), list(map(value, outputs)), weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "tokenizer.json").write_text("{}")
    (tmp_path / "secret.data").write_bytes(b"\0" * 16)
    return inner


def model(folder: Path) -> Model:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return model_of(*sorted(files, key=lambda path: path.suffix != ".onnx"), format="onnx")


def refused(model: Model, kind: type[MyllmError], words: str, **options: object) -> None:
    """Both ``estimate`` and ``load`` say so, before any library is asked."""
    given = load_options(OnnxEngine, options)
    for ask in (lambda: OnnxEngine.estimate(model, given), lambda: OnnxEngine.load(model, given, lambda _: None)):
        with pytest.raises(kind, match=words):
            ask()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("location", ["../secret.data", "{root}/secret.data", "a/../../secret.data", "link", "none"])
def test_external_data_must_be_files_of_the_model(folder, location, inside):
    (folder / "link").symlink_to(folder.parent / "secret.data")
    location = location.format(root=folder.parent)
    write_graph(folder / "model.onnx", DECODER, ["logits"], location, inside)
    refused(model(folder), IntegrityError, "isn't a file of the model")


def test_external_data_of_the_model_are_counted(folder):
    graph = write_graph(folder / "model.onnx", DECODER, ["logits"], "model.onnx_data")
    (folder / "model.onnx_data").write_bytes(b"\0" * 16)
    read, size = checked_graph(model(folder), graph)
    assert read.external == {"model.onnx_data"} and size == graph.stat().st_size + 16


def test_data_beside_a_model_that_isnt_in_its_manifest_isnt_read(folder):
    write_graph(folder / "model.onnx", DECODER, ["logits"], "model.onnx_data")
    known = model(folder)
    (folder / "model.onnx_data").write_bytes(b"\0" * 16)
    refused(known, IntegrityError, "isn't a file of the model")


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (["input_ids", "attention_mask"], ["logits"], "with-past"),
        ([*DECODER, "use_cache_branch"], ["logits"], "use_cache_branch"),
        (["pixel_values"], ["last_hidden_state"], "pixel_values"),
        (["input_ids", "attention_mask"], ["scores"], "neither logits nor"),
    ],
)
def test_graphs_of_another_kind_are_refused_with_the_reason(folder, inputs, outputs, words):
    write_graph(folder / "model.onnx", inputs, outputs)
    support = OnnxEngine.probe(model(folder))
    assert support.score == 0 and words in support.reason
    refused(model(folder), UnsupportedError, words)


def test_the_graph_can_be_chosen(folder):
    write_graph(folder / "model.onnx", ["input_ids", "attention_mask"], ["logits"])
    other = write_graph(folder / "onnx" / "model_q4.onnx", DECODER, ["logits"])
    assert find_layout(model(folder), "model_q4.onnx").graph == other
    refused(model(folder), UnsupportedError, "there are: model.onnx, model_q4.onnx", file_name="no.onnx")


GENAI = {"decoder": {"filename": "model.onnx", "session_options": {"log_id": "x"}}, "vocab_size": 9}


def genai(folder: Path, **decoder: object) -> Model:
    write_graph(folder / "model.onnx", DECODER, ["logits"])
    config = {**GENAI, "decoder": {**GENAI["decoder"], **decoder}}
    (folder / "genai_config.json").write_text(json.dumps({"model": config, "search": {}}))
    return model(folder)


def test_a_genai_model_is_seen(folder):
    layout = find_layout(genai(folder))
    assert (layout.kind, layout.graph) == ("genai", folder / "model.onnx")


@pytest.mark.parametrize("name", ["../model.onnx", "other.onnx", "", 5, None, "tokenizer.json/../model.onnx"])
def test_a_genai_configuration_names_a_graph_of_the_model(folder, name):
    refused(genai(folder, filename=name), IntegrityError, "isn't one of the model's files")


@pytest.mark.parametrize(
    ("decoder", "kind", "words"),
    [
        ({"session_options": {"custom_ops_library": "evil.so"}}, IntegrityError, "code of the model's author"),
        ({"session_options": {"enable_profiling": "/tmp/x"}}, UnsupportedError, "enable_profiling"),
        ({"session_options": {"ep.context_file_path": "x"}}, UnsupportedError, "ep.context_file_path"),
        ({"session_options": [1]}, UnsupportedError, "session_options"),
        ({"pipeline": [{"a": {"filename": "b.onnx"}}]}, UnsupportedError, "several graphs"),
    ],
)
def test_a_genai_configuration_sets_nothing_that_could_do_harm(folder, decoder, kind, words):
    refused(genai(folder, **decoder), kind, words)


@pytest.mark.parametrize("cut", [0, 1, 7, 60, 120])
def test_a_graph_that_isnt_whole_is_refused(folder, cut):
    path = write_graph(folder / "model.onnx", DECODER, ["logits"])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        read_graph(path)


def test_damage_anywhere_never_does_more_than_be_refused(folder):
    path = write_graph(folder / "model.onnx", DECODER, ["logits"], "model.onnx_data", inside=True)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = int(random.integers(0, 256))
        path.write_bytes(damaged)
        try:
            read_graph(path)
        except IntegrityError as error:
            assert os.linesep not in str(error)
