"""Vision models, tiny and random: a reply is the one that transformers' own generate writes from the same images."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from myllm_transformers.engine import TransformersEngine

from myllm_core import Model
from myllm_core.errors import IntegrityError, InvalidRequest, UnsupportedError
from myllm_core.images import decode_rgb
from myllm_core.models.hub_files import HubFiles
from myllm_core.testing import EngineCase, EngineContract, model_of
from myllm_core.types import ChatRequest, Finish, Image, Message, Sampling, TextDelta

TEXT = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "head_dim": 8}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
EYE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
QWEN_EYE = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
MARKS = [
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|vision_start|>", "<|image_pad|>",
    "<|vision_end|>", "<|video_pad|>", "<start_of_image>", "<image_soft_token>", "<end_of_image>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]  # fmt: skip
FIRST = 257
ID = {mark: FIRST + number for number, mark in enumerate(MARKS)}


def template(image: str) -> str:
    """A chat template of the common kind, with what it writes for an image."""
    return (
        "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + image
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )


def llava(cls: Any) -> tuple[Any, dict[str, Any], str]:
    eye = {"model_type": "clip_vision_model", "image_size": 56, "projection_dim": 32} | EYE
    config = cls.LlavaConfig(
        text_config={"model_type": "llama"} | TEXT,
        vision_config=eye,
        image_token_index=ID["<image>"],
        image_seq_length=16,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 56},
            "crop_size": {"height": 56, "width": 56},
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    }
    return config, files, "{{ '<image>\n' }}"


def idefics(cls: Any) -> tuple[Any, dict[str, Any], str]:
    eye = {"model_type": "idefics3_vision", "image_size": 56} | EYE
    config = cls.Idefics3Config(
        text_config={"model_type": "llama"} | TEXT,
        vision_config=eye,
        image_token_id=ID["<image>"],
        scale_factor=2,
        pad_token_id=0,
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 112},
            "max_image_size": {"longest_edge": 56},
        },
        "processor_config.json": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    }
    return config, files, "{{ '<image>' }}"


def qwen(cls: Any) -> tuple[Any, dict[str, Any], str]:
    config = cls.Qwen2VLConfig(
        text_config=TEXT | MROPE,
        vision_config=QWEN_EYE,
        image_token_id=ID["<|image_pad|>"],
        video_token_id=ID["<|video_pad|>"],
        vision_start_token_id=ID["<|vision_start|>"],
        vision_end_token_id=ID["<|vision_end|>"],
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 3136,
            "max_pixels": 50176,
        },
    }
    return config, files, "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"


def gemma(cls: Any) -> tuple[Any, dict[str, Any], str]:
    eye = {"model_type": "siglip_vision_model", "image_size": 56} | EYE
    config = cls.Gemma3Config(
        text_config=TEXT
        | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        vision_config=eye,
        mm_tokens_per_image=4,
        boi_token_index=ID["<start_of_image>"],
        eoi_token_index=ID["<end_of_image>"],
        image_token_index=ID["<image_soft_token>"],
    )
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 56, "width": 56},
        },
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    }
    return config, files, "{{ '<start_of_image>' }}"


KINDS = {"llava": llava, "idefics": idefics, "qwen": qwen, "gemma": gemma}
TOKENS = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"
}  # fmt: skip


def write(folder: Path, kind: str, letters: dict[str, Any]) -> Path:
    """A tiny vision model of random weights, with tokenizer and processor, as the Hub has them."""
    import torch
    import transformers

    config, files, place = KINDS[kind](transformers)
    torch.manual_seed(7)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():  # as they are made, small weights make all logits nearly alike
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    model.save_pretrained(folder)
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    marks = [{"id": number, "content": mark} | flags for mark, number in ID.items()]
    (folder / "tokenizer.json").write_text(json.dumps(letters | {"added_tokens": [*letters["added_tokens"], *marks]}))
    named = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "gemma":
        named["extra_special_tokens"] = TOKENS
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"chat_template": template(place)}))
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


def noise(seed: int, width: int = 90, height: int = 60) -> Image:
    """A picture with something else in each corner."""
    from PIL import Image as pillow

    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    file = io.BytesIO()
    pillow.fromarray(pixels).resize((width, height)).save(file, "PNG")
    return Image(file.getvalue(), "image/png")


A, B = noise(1), noise(2, 60, 90)
Part = str | Image


def model_in(folder: Path) -> Model:
    """A model of a folder's files, the weights first."""
    paths = [path for part in ("*.safetensors", "*.json") for path in sorted(folder.glob(part))]
    return model_of(*paths, format="safetensors", name="test:latest")


def prompt_of(engine: TransformersEngine, parts: list[Part]) -> list[int]:
    """Token ids of texts and images, as the core puts them together."""
    pieces = [engine.tokenize(p, False) if isinstance(p, str) else engine.image_tokens(p) for p in parts]
    return [token for piece in pieces for token in piece]


def images_of(parts: list[Part]) -> tuple[Image, ...]:
    return tuple(part for part in parts if isinstance(part, Image))


def start(driver: Any, parts: list[Part], **more: Any) -> int:
    number: int = driver.start(prompt_of(driver.engine, parts), images=images_of(parts), **more)
    return number


def reply(driver: Any, parts: list[Part], **more: Any) -> Any:
    [found] = driver.finish(start(driver, parts, **more))
    assert found.error is None
    return found


def module_of(engine: TransformersEngine) -> Any:
    return engine._parts.decoding._backend._model.module


def generated(engine: TransformersEngine, folder: Path, parts: list[Part], count: int) -> tuple[Any, ...]:
    """Prompt, tokens and their log probabilities, as the model's own processor and generate make them."""
    import torch
    from myllm_transformers.processor import load_processor

    processor = load_processor(HubFiles(model_in(folder)))
    text = "".join(part if isinstance(part, str) else engine._vision._place for part in parts)
    pixels = [decode_rgb(image) for image in images_of(parts)]
    inputs = processor(text=[text], images=[pixels] if pixels else None, return_tensors="pt", add_special_tokens=False)
    module = module_of(engine)
    module.generation_config.eos_token_id = None
    with torch.inference_mode():
        made = module.generate(
            **inputs, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    prompt = inputs["input_ids"][0].tolist()
    tokens = made.sequences[0, len(prompt) :].tolist()
    chances = [float(row[0].log_softmax(0)[token]) for row, token in zip(made.logits, tokens, strict=True)]
    return prompt, tokens, chances


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, letters: dict[str, Any]) -> Callable[[str], Path]:
    """The folder of each kind's model, written once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = write(tmp_path_factory.mktemp(kind), kind, letters)
        return made[kind]

    return folder


TWO: list[Part] = ["user: ", A, "What is it, and ", B, " this?\nassistant: "]


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_generate_does(load: Any, folders: Any, kind: str):
    driver = load(folders(kind), n_ctx=512)
    engine = driver.engine
    assert "vision" in engine.facts.capabilities
    assert type(engine._parts.decoding._backend).__name__ == "Together"
    prompt, tokens, chances = generated(engine, folders(kind), TWO, 12)
    ids = prompt_of(engine, TWO)
    rows = [token for token in ids if token < 0]
    image = engine._vision._token
    assert [image if token < 0 else token for token in ids] == prompt
    assert len(set(rows)) == len(rows)
    assert min(rows) >= -(2**31)
    found = reply(driver, TWO)
    assert found.tokens == tokens
    assert [out.logprob for out in found.outs] == pytest.approx(chances, abs=2e-3)
    text: list[Part] = ["user: What is it?\nassistant: "]
    assert reply(driver, text).tokens == generated(engine, folders(kind), text, 12)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_with_images_is_answered_as_by_the_model_s_own_template(load: Any, folders: Any, kind: str):
    import transformers

    engine = load(folders(kind), n_ctx=512).engine
    assert TransformersEngine.probe(model_in(folders(kind))).reason == "a model that writes and reads images"
    assert f"'{engine._vision._place}'" in KINDS[kind](transformers)[2]
    messages = (
        Message("user", "look at this: ", images=(Image(A.data, "", 14),)),
        Message("assistant", "seen"),
        Message("user", "and  too", images=(Image(B.data, "", 4),)),
    )
    parts: list[Part] = ["user: look at this: ", A, "\nassistant: seen\nuser: and ", B, " too\nassistant: "]
    _, tokens, _ = generated(engine, folders(kind), parts, 10)
    *_, end = events = list(engine.chat(ChatRequest(messages, Sampling(temperature=0.0), max_tokens=10)))
    assert isinstance(end, Finish)
    assert end.error is None
    assert end.usage.prompt_tokens == len(prompt_of(engine, parts))
    written = "".join(event.text for event in events if isinstance(event, TextDelta))
    until = next((at for at, token in enumerate(tokens) if token in engine.facts.eos_tokens), len(tokens))
    text = b"".join(map(engine.piece, tokens[:until])).decode(errors="replace")
    assert written.strip() == text.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_four_at_once_write_what_each_writes_alone(load: Any, folders: Any, kind: str):
    driver = load(folders(kind), n_ctx=512, n_batch=7)
    several: list[list[Part]] = [TWO, ["no picture here, only a text"], ["a", B, "b"], [B, "first, then ", A]]
    numbers = [start(driver, parts) for parts in several]
    together = driver.finish(*numbers)
    fresh = load(folders(kind), n_ctx=512)
    for parts, among in zip(several, together, strict=True):
        alone = reply(fresh, parts)
        assert alone.cached == 0
        assert among.tokens == alone.tokens
        assert [out.logprob for out in among.outs] == pytest.approx([out.logprob for out in alone.outs], abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_is_kept_up_to_another_image(load: Any, folders: Any, kind: str):
    driver = load(folders(kind), n_ctx=512)
    fresh = load(folders(kind), n_ctx=512)
    begin: list[Part] = ["this is the beginning of it ", A, " and then "]
    first = reply(driver, [*begin, B, "?"])
    length = len(prompt_of(driver.engine, [*begin, B, "?"]))
    place = prompt_of(driver.engine, [B])
    before = next(number for number, token in enumerate(place) if token < 0)
    next_turn: list[Part] = [*begin, B, "?"]
    longer = [*prompt_of(driver.engine, next_turn), *first.tokens, 65]
    cases = [
        (longer, (A, B), length + len(first.tokens) - 1),
        (prompt_of(driver.engine, [*begin, A, "?"]), (A, A), len(prompt_of(driver.engine, begin)) + before),
    ]
    up_to_an_image = prompt_of(driver.engine, [*begin, B])
    while up_to_an_image[-1] >= 0:
        up_to_an_image.pop()  # its last token is read again for its logits, and with it the whole image
    cases.append((up_to_an_image, (A, B), len(prompt_of(driver.engine, begin)) + before))
    for tokens, images, cached in cases:
        [again] = driver.finish(driver.start(tokens, images=images))
        [anew] = fresh.finish(fresh.start(tokens, images=images))
        assert again.cached == cached
        assert again.tokens == anew.tokens
        assert [out.logprob for out in again.outs] == pytest.approx([out.logprob for out in anew.outs], abs=2e-3)


@pytest.fixture
def llavas(load: Any, folders: Any) -> Any:
    return load(folders("llava"), n_ctx=256)


def test_it_matters_which_image_stands_where(llavas: Any):
    assert llavas.engine.image_tokens(A) == llavas.engine.image_tokens(Image(A.data, "image/png", at=3))
    found = [reply(llavas, ["a ", one, " b ", other, " c"]) for one, other in ((A, B), (B, A), (A, A))]
    assert len({tuple(out.logprob for out in each.outs) for each in found}) == 3


def test_penalties_and_seeds_leave_the_rows_of_images_alone(llavas: Any):
    sampling = Sampling(temperature=0.0, repeat_penalty=1.5, presence_penalty=1.0, frequency_penalty=1.0)
    assert len(reply(llavas, TWO, sampling=sampling).outs) == 12
    first, again = (reply(llavas, TWO, sampling=Sampling(seed=5)).tokens for _ in range(2))
    assert first == again


def test_a_reply_is_cancelled_while_its_images_are_read(llavas: Any):
    number = start(llavas, TWO)
    llavas.step()
    llavas.cancel(number)
    fresh = reply(llavas, ["something else that is much the same"])
    assert fresh.tokens == reply(llavas, ["something else that is much the same"]).tokens
    assert len(reply(llavas, TWO).outs) == 12


def test_a_file_that_is_no_image_is_the_sender_s_mistake(llavas: Any):
    for data in (b"", b"no image", A.data[:60]):
        with pytest.raises(InvalidRequest):
            llavas.engine.image_tokens(Image(data, "image/png"))


def test_rows_that_belong_to_no_image_are_refused(llavas: Any):
    ids = prompt_of(llavas.engine, ["a", A])
    for images in ((), (B,), (A, A)):
        [found] = llavas.finish(llavas.start(ids, images=images))
        assert isinstance(found.error, InvalidRequest)
    assert len(reply(llavas, ["a", A]).outs) == 12


def test_an_image_that_the_model_cannot_take_is_refused(load: Any, folders: Any):
    driver = load(folders("qwen"), n_ctx=256)
    with pytest.raises(InvalidRequest, match="aspect ratio"):
        driver.engine.image_tokens(noise(3, 2100, 10))


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def blind(driver: Any, why: str) -> None:
    """The model writes, and says why it reads no images."""
    assert "vision" not in driver.engine.facts.capabilities
    with pytest.raises(UnsupportedError, match=why):
        driver.engine.image_tokens(A)
    assert len(reply(driver, ["only a text"]).outs) == 12


def test_without_its_processor_a_model_still_writes(load: Any, tmp_path: Path, letters: dict[str, Any]):
    folder = write(tmp_path, "llava", letters)
    (folder / "preprocessor_config.json").unlink()
    assert "reads images once it has the preprocessor_config.json" in TransformersEngine.probe(model_in(folder)).reason
    blind(load(folder), "processor")


def test_a_processor_that_does_not_fit_is_found_when_the_model_is_loaded(
    load: Any, tmp_path: Path, letters: dict[str, Any]
):
    folder = write(tmp_path, "gemma", letters)
    change(folder, "processor_config.json", image_seq_length=9)
    blind(load(folder), "images can't be read")
    change(folder, "processor_config.json", image_seq_length=4)
    change(folder, "preprocessor_config.json", size={"height": 10**6, "width": 56})
    blind(load(folder), "too large")


def test_a_context_that_no_image_fits_is_told(load: Any, folders: Any):
    blind(load(folders("llava"), n_ctx=24), "16 tokens.*n_ctx")


def test_a_processor_that_names_code_is_refused(load: Any, tmp_path: Path, letters: dict[str, Any]):
    folder = write(tmp_path, "llava", letters)
    change(folder, "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"})
    assert TransformersEngine.probe(model_in(folder)).score == 0
    with pytest.raises(IntegrityError, match="code"):
        load(folder)


@pytest.mark.skipif(bool(importlib.util.find_spec("num2words")), reason="the package that is to be missing is there")
def test_a_package_that_a_processor_needs_is_named(load: Any, tmp_path: Path, letters: dict[str, Any]):
    folder = write(tmp_path, "idefics", letters)
    change(folder, "processor_config.json", processor_class="SmolVLMProcessor")
    assert "num2words" in TransformersEngine.probe(model_in(folder)).reason
    blind(load(folder), "pip install num2words")


@pytest.mark.timeout(600)
class TestContract(EngineContract):
    @pytest.fixture
    def case(self, folders: Any) -> EngineCase:
        return EngineCase(TransformersEngine, model_in(folders("llava")), {"n_ctx": 320, "max_sequences": 3}, 240.0)
