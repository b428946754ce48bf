"""Writes tiny projectors for images, of several kinds, with random weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from myllm_core import Image

_FEED = 64


class Clip:
    """A projector file that is being written: a vision encoder of two blocks and what comes after it."""

    def __init__(self, path: Path, kind: str, width: int = 32, size: int = 28, patch: int = 14, text: int = 64) -> None:
        self.path, self.width, self.text, self.patch = path, width, text, patch
        self.patches = (size // patch) ** 2
        self.writer = gguf.GGUFWriter(path, "clip")
        self._random = np.random.default_rng(3)
        self.writer.add_bool("clip.has_vision_encoder", True)
        self.writer.add_string("clip.projector_type", kind)
        sizes = {"image_size": size, "patch_size": patch, "embedding_length": width, "feed_forward_length": _FEED}
        sizes |= {"block_count": 2, "projection_dim": text, "attention.head_count": 2}
        for key, value in sizes.items():
            self.writer.add_uint32(f"clip.vision.{key}", value)
        self.writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
        self.writer.add_array("clip.vision.image_mean", [0.5] * 3)
        self.writer.add_array("clip.vision.image_std", [0.5] * 3)
        self.writer.add_bool("clip.use_gelu", True)

    def tensor(self, name: str, *shape: int, spread: float = 0.2) -> None:
        self.writer.add_tensor(name, self._random.normal(0, spread, shape).astype(np.float32))

    def linear(self, name: str, out: int, into: int, *rest: int) -> None:
        self.tensor(f"{name}.weight", out, into, *rest)
        self.tensor(f"{name}.bias", out)

    def norm(self, name: str, width: int, bias: bool = True) -> None:
        self.writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        if bias:
            self.writer.add_tensor(f"{name}.bias", np.zeros(width, np.float32))

    def blocks(self) -> None:
        for block in ("v.blk.0", "v.blk.1"):
            for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
                self.linear(f"{block}.{name}", self.width, self.width)
            self.norm(f"{block}.ln1", self.width)
            self.norm(f"{block}.ln2", self.width)
            self.linear(f"{block}.ffn_up", _FEED, self.width)
            self.linear(f"{block}.ffn_down", self.width, _FEED)

    def save(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def llava(path: Path, text: int = 64, size: int = 56, width: int = 32) -> Path:
    """Like LLaVA's: a row for each of the patches, 16 of an image; nothing around them."""
    clip = Clip(path, "mlp", size=size, text=text, width=width)
    clip.tensor("v.class_embd", clip.width)
    clip.tensor("v.patch_embd.weight", clip.width, 3, clip.patch, clip.patch)
    clip.tensor("v.position_embd.weight", clip.patches + 1, clip.width)
    clip.norm("v.pre_ln", clip.width)
    clip.blocks()
    clip.linear("mm.0", text, clip.width)
    clip.linear("mm.2", text, text)
    return clip.save()


def gemma(path: Path, text: int = 64) -> Path:
    """Like Gemma 3's: the rows of an image see each other, whatever their order."""
    clip = Clip(path, "gemma3", size=112, text=text)
    clip.writer.add_uint32("clip.vision.projector.scale_factor", 2)
    clip.linear("v.patch_embd", clip.width, 3, clip.patch, clip.patch)
    clip.tensor("v.position_embd.weight", clip.patches, clip.width)
    clip.blocks()
    clip.norm("v.post_ln", clip.width)
    clip.tensor("mm.input_projection.weight", clip.width, text)
    clip.norm("mm.soft_emb_norm", clip.width, bias=False)
    return clip.save()


def qwen(path: Path, text: int = 64) -> Path:
    """Like Qwen2-VL's: as many rows as the image is large, with places in two dimensions."""
    clip = Clip(path, "qwen2vl_merger", size=56, text=text)
    clip.tensor("v.patch_embd.weight", clip.width, 3, clip.patch, clip.patch)
    clip.tensor("v.patch_embd.weight.1", clip.width, 3, clip.patch, clip.patch)
    clip.blocks()
    clip.norm("v.post_ln", clip.width)
    clip.linear("mm.0", 4 * clip.width, 4 * clip.width)
    clip.linear("mm.2", text, 4 * clip.width)
    return clip.save()


def picture(seed: int, width: int = 48, height: int = 40, kind: str = "PNG", **more: Any) -> Image:
    """A picture of coloured squares."""
    from PIL import Image as pillow

    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    data = io.BytesIO()
    pillow.fromarray(squares).resize((width, height), pillow.Resampling.NEAREST).save(data, kind, **more)
    return Image(data.getvalue(), f"image/{kind.lower()}")
