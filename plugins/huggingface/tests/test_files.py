"""Which files are chosen from a repository's listing."""

from __future__ import annotations

import pytest
from myllm_huggingface.files import RepoFile, choose

from myllm_core.errors import NotFound


def pick(paths: list[str], wanted: str = "", repo: str = "owner/model-GGUF") -> list[str]:
    return [f.path for f in choose([RepoFile(path, 1_000_000) for path in paths], wanted, repo).files]


BARTOWSKI = [
    ".gitattributes",
    "README.md",
    *(
        f"SmolLM2-135M-Instruct-{q}.gguf"
        for q in ("IQ3_M", "Q2_K", "Q4_0", "Q4_K_L", "Q4_K_M", "Q4_K_S", "Q8_0", "f16")
    ),
    "SmolLM2-135M-Instruct.imatrix",
]


def test_the_default_is_q4_k_m_and_only_that_file():
    assert pick(BARTOWSKI) == ["SmolLM2-135M-Instruct-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (["Q4_K_M"], "Q4_K_S"),
        (["Q4_K_M", "Q4_K_S"], "Q4_0"),
        (["Q4_K_M", "Q4_K_S", "Q4_0"], "Q8_0"),
        (["Q4_K_M", "Q4_K_S", "Q4_0", "Q8_0"], "f16"),
    ],
)
def test_the_default_falls_back_in_the_documented_order(missing, expected):
    paths = [p for p in BARTOWSKI if not any(p.endswith(f"-{q}.gguf") for q in missing)]
    assert pick(paths) == [f"SmolLM2-135M-Instruct-{expected}.gguf"]


@pytest.mark.parametrize("wanted", ["Q8_0", "q8_0", "SmolLM2-135M-Instruct-Q8_0.gguf", "SmolLM2-135M-Instruct-Q8_0"])
def test_a_quantization_in_any_case_or_a_file_is_taken(wanted):
    assert pick(BARTOWSKI, wanted) == ["SmolLM2-135M-Instruct-Q8_0.gguf"]


def test_fp16_and_f16_are_the_same_thing():
    assert pick(BARTOWSKI, "fp16") == ["SmolLM2-135M-Instruct-f16.gguf"]


def test_q4_k_l_is_not_taken_for_q4_k_m():
    with pytest.raises(NotFound, match="Q5_K_M fits nothing"):
        pick(BARTOWSKI, "Q5_K_M")


def test_the_error_lists_what_there_is_with_sizes_and_a_reference_to_type():
    files = [RepoFile("m-Q2_K.gguf", 300_000_000), RepoFile("m-Q3_K_M.gguf", 1_500_000_000)]
    with pytest.raises(NotFound) as caught:
        choose(files, "", "owner/m-GGUF")
    assert "Q2_K (300.0 MB), Q3_K_M (1.5 GB)" in str(caught.value)
    assert "hf:owner/m-GGUF:Q2_K" in str(caught.value)


def test_all_shards_are_taken_in_order_and_nothing_else():
    shards = [f"big-Q4_K_M-{n:05}-of-00003.gguf" for n in (2, 1, 3)]
    assert pick([*shards, "big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"]) == sorted(shards)


def test_a_missing_shard_is_said_before_anything_is_fetched():
    with pytest.raises(NotFound, match=r"lacks big-Q4_K_M-00002-of-00003\.gguf"):
        pick(["big-Q4_K_M-00001-of-00003.gguf", "big-Q4_K_M-00003-of-00003.gguf"])


def test_naming_the_first_shard_takes_all_of_them():
    shards = [f"Q8_0/big-Q8_0-{n:05}-of-00002.gguf" for n in (1, 2)]
    assert pick([*shards, "big-Q4_K_M.gguf"], shards[0]) == shards


def test_a_quantization_that_only_the_folder_names_is_found():
    assert pick(["BF16/model-00001-of-00001.gguf", "Q6_K/model-00001-of-00001.gguf"], "q6_k") == [
        "Q6_K/model-00001-of-00001.gguf"
    ]


def test_projectors_and_importance_matrices_are_no_models():
    assert pick(["gemma-3-4b-it-Q4_K_M.gguf", "gemma-imatrix.gguf"]) == ["gemma-3-4b-it-Q4_K_M.gguf"]
    with pytest.raises(NotFound, match="holds no GGUF"):
        pick(["mmproj-F16.gguf", "ggml-vocab-llama.gguf"])


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        (["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (["mmproj-m-it-Q8_0.gguf", "mmproj-m-it-bf16.gguf"], "mmproj-m-it-bf16.gguf"),
        (["mmproj-F32.gguf", "mmproj-Q8_0.gguf"], "mmproj-Q8_0.gguf"),
        (["mmproj-other-3b-f16.gguf", "m-it-mmproj.gguf"], "m-it-mmproj.gguf"),
        (["mmproj/mmproj-m-it-f16.gguf"], "mmproj/mmproj-m-it-f16.gguf"),
    ],
)
def test_one_projector_comes_with_the_model_whatever_was_asked_for(there, taken):
    models = ["m-it-Q4_K_M.gguf", "m-it-Q8_0.gguf"]
    for wanted, model in (("", models[0]), ("q8_0", models[1]), (models[1], models[1])):
        assert pick([*there, *models], wanted) == [model, taken]


def test_a_projector_stays_where_it_is_when_the_model_lies_in_a_folder():
    there = ["mmproj-F16.gguf", "Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"]
    assert pick(there, "Q8_0") == [*there[1:], there[0]]


def test_dynamic_quantizations_count_when_there_is_no_plain_one():
    assert pick(["m-UD-Q4_K_M.gguf", "m-UD-Q2_K_XL.gguf"]) == ["m-UD-Q4_K_M.gguf"]
    assert pick(["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"]) == ["m-Q4_K_M.gguf"]
    assert pick(["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], "Q4_K_XL") == ["m-UD-Q4_K_XL.gguf"]


def test_two_models_of_one_quantization_are_told_apart_by_file_only():
    paths = ["tiny-Q4_K_M.gguf", "large-Q4_K_M.gguf"]
    with pytest.raises(NotFound, match=r"tiny-Q4_K_M\.gguf \(1\.0 MB\)"):
        pick(paths)
    assert pick(paths, "tiny-Q4_K_M.gguf") == ["tiny-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    "name",
    [
        "Phi-3-mini-4k-instruct-q4.gguf",
        "qwen1_5-1_8b-chat-q4_k_m.gguf",
        "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf",
        "gpt-oss-20b-mxfp4.gguf",
        "stories260K.gguf",
    ],
)
def test_the_only_file_needs_no_choice_whatever_it_is_called(name):
    assert pick([name]) == [name]


SAFETENSORS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "modeling_mine.py",
    "original/consolidated.00.pth",
    "README.md",
    "runs/events.json",
]


def test_safetensors_come_with_tokenizer_and_template_and_without_code_or_pickles():
    assert pick(SAFETENSORS) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_repository_of_pickles_alone_has_no_model():
    with pytest.raises(NotFound, match="holds no GGUF, safetensors or ONNX"):
        pick(["config.json", "pytorch_model.bin", "model.pt", "modeling.py"])


def test_another_precision_is_taken_when_it_is_named():
    paths = ["config.json", "model.safetensors", "model.fp16.safetensors"]
    assert pick(paths) == ["model.safetensors", "config.json"]
    assert pick(paths, "model.fp16.safetensors") == ["model.fp16.safetensors", "config.json"]


def test_gguf_comes_before_safetensors_unless_the_format_is_named():
    paths = [*SAFETENSORS, "model-Q4_K_M.gguf"]
    assert pick(paths) == ["model-Q4_K_M.gguf"]
    assert pick(paths, "safetensors")[0] == "model-00001-of-00002.safetensors"


def test_an_onnx_folder_for_genai_is_taken_whole_and_alone():
    folder = "cpu_and_mobile/cpu-int4-rtn-block-32"
    paths = [f"{folder}/{name}" for name in ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json")]
    assert pick([*paths, "README.md", "config.json", f"{folder}/setup.py"])[:1] == [f"{folder}/model.onnx"]
    assert sorted(pick([*paths, "README.md", f"{folder}/setup.py"])) == paths
    with pytest.raises(NotFound, match="cuda/fp16"):
        pick([*paths, "cuda/fp16/genai_config.json", "cuda/fp16/model.onnx"])
    assert pick([*paths, "cuda/fp16/genai_config.json", "cuda/fp16/model.onnx"], "cuda/fp16") == [
        "cuda/fp16/model.onnx",
        "cuda/fp16/genai_config.json",
    ]


def test_onnx_graphs_bring_their_data_and_default_to_four_bits():
    graphs = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data"]
    assert pick(["config.json", *graphs]) == ["onnx/model_q4.onnx", "onnx/model_q4.onnx_data", "config.json"]
    assert pick(["config.json", *graphs], "onnx/model.onnx")[:2] == graphs[:2]
    assert pick(["model.safetensors", "config.json", *graphs], "onnx")[0] == "onnx/model_q4.onnx"
