"""The processor of a vision model: what makes pixel values of an image, and tokens of the place where it stands.

Import this module only inside functions: it brings transformers in.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import transformers  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.chat.sandbox import compile_template, render
from myllm_core.errors import EngineMissing, IntegrityError, TemplateError
from myllm_core.models.hub_files import HubFiles
from myllm_transformers.model import library_errors, links

_CONFIGS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_LONGEST_SIDE = 8192
_MOST_PIXELS = 2**26
_TEXT = "\N{SYMBOL FOR SUBSTITUTE}"  # a text that no template has


def load_processor(files: HubFiles) -> Any:
    """The processor that the model's files describe.

    Where torchvision isn't installed, the image processor is transformers' one on Pillow, and a processor that has a
    part for videos comes without it: that part needs torchvision. Raises ``IntegrityError`` for files that name code or
    absurd sizes, ``EngineMissing`` when a package is missing, and ``EngineError``.
    """
    for name in _CONFIGS:
        check_sizes(files.config(name))
    found = {name: path for name in ("tokenizer.json", *_CONFIGS) if (path := files.find(name)) is not None}
    with library_errors("load the model's processor"), links(found) as folder:
        cls = _class(files)
        if importlib.util.find_spec("torchvision") is not None or not any(map(_of_videos, cls.get_attributes())):
            return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _without_videos(cls, folder)


def check_sizes(config: dict[str, Any]) -> None:
    """Refuse sizes of images that would fill the memory. Raises ``IntegrityError``."""
    values = [config]
    while values:
        value = values.pop()
        values += [item for item in value.values() if isinstance(item, dict)]
        for key, size in value.items():
            side = key in ("height", "width", "image_size", "pan_and_scan_max_num_crops")
            area = key in ("longest_edge", "shortest_edge", "max_pixels", "min_pixels")  # edges may be areas (Qwen)
            if isinstance(size, int) and ((side and size > _LONGEST_SIDE) or (area and size > _MOST_PIXELS)):
                raise IntegrityError(f"the model's processor makes images too large ({key} {size}); pull it again")


def _class(files: HubFiles) -> Any:
    """The class that one of the files names, else the one for the model's type."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    places = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    named = next((name for place in places if (name := files.config(place).get("processor_class"))), None)
    name = named or PROCESSOR_MAPPING_NAMES.get(str(files.config("config.json").get("model_type")))
    if name not in PROCESSOR_MAPPING_NAMES.values():
        raise EngineMissing(f"this version of transformers has no processor {name}; pip install -U transformers")
    return getattr(transformers, name)


def _of_videos(attribute: str) -> bool:
    return "video" in attribute


def _without_videos(cls: Any, folder: Path) -> Any:
    class Still(cls):  # type: ignore[misc] # transformers isn't seen by mypy
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            """Let the missing part pass."""
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    makers = {"tokenizer": transformers.AutoTokenizer, "image_processor": transformers.AutoImageProcessor}
    safe = {"local_files_only": True, "trust_remote_code": False}
    parts = [makers[name].from_pretrained(folder, **safe) if name in makers else None for name in cls.get_attributes()]
    values, _ = cls.get_processor_dict(folder, local_files_only=True)
    return Still.from_args_and_dict(parts, values)


def place_of_image(processor: Any, template: str | None) -> str:
    """What the model's chat template writes where an image stands, such as ``<image>`` between two marks.

    A message with an image and a text is rendered, and one with the text alone; what the first has more before the text
    is the image's. It must hold the processor's own sign for an image, which its call makes tokens of; where it doesn't
    (no template, or one that takes no images), the sign alone is the place. Raises ``EngineMissing`` when the processor
    has no such sign.
    """
    sign = getattr(processor, "image_token", None)
    if not isinstance(sign, str) or not sign:
        raise EngineMissing("this version of transformers has a processor that says no sign for images")
    try:
        more = _more(template or "")
    except TemplateError:
        more = ""
    return more if more.count(sign) == 1 else sign


def _more(template: str) -> str:
    compiled = compile_template(template)
    text = {"type": "text", "text": _TEXT}
    heads = []
    for content in ([{"type": "image"}, text], [text]):
        values = {"messages": [{"role": "user", "content": content}], "add_generation_prompt": True}
        head, found, _ = render(compiled, values | {"bos_token": "", "eos_token": ""}).partition(_TEXT)
        heads.append(head if found else "")
    image, plain = heads
    start = next((at for at, (one, other) in enumerate(zip(image, plain, strict=False)) if one != other), len(plain))
    rest = plain[start:]
    end = next((at for at in range(len(rest), 0, -1) if image[start:].endswith(rest[-at:])), 0)
    return image[start : len(image) - end]
