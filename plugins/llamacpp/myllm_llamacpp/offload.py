"""How many layers go to the GPU: as many as its free memory takes.

llama.cpp counts the output as a layer and takes layers from the end: 1 is the output alone, 2 the last block too,
and so on (``load_tensors`` of ``llama-model.cpp``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from myllm_core.models.gguf import GGUF
from myllm_llamacpp.devices import Device

_BLOCK = re.compile(r"blk\.(\d+)\.")
_EMBEDDING = "token_embd.weight"

MARGIN = 512 * 2**20
"""Bytes of each device that are left to its driver and to others."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Bytes of the weights in the order in which they go to a GPU: the output's, then the blocks' from the last on."""

    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """All of them, the output too."""
        return len(self.sizes)


def layers_of(headers: Iterable[GGUF]) -> Layers:
    """Read the sizes from the headers of all files of a model. The input embeddings never leave the host."""
    blocks: dict[int, int] = {}
    output = embedding = 0
    separate = False
    for tensor in (tensor for header in headers for tensor in header.tensors):
        if block := _BLOCK.match(tensor.name):
            number = int(block[1])
            blocks[number] = blocks.get(number, 0) + tensor.nbytes
        elif tensor.name == _EMBEDDING:
            embedding = tensor.nbytes
        else:
            output += tensor.nbytes
            separate = separate or tensor.name == "output.weight"
    last = output if separate else output + embedding
    return Layers((last, *(blocks[number] for number in sorted(blocks, reverse=True))))


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model needs: its layers, bytes of the cache, which the blocks share, and of buffers on each device."""

    layers: Layers
    cache: int
    buffers: int

    def weights_of(self, count: int) -> int:
        """Bytes of the weights of so many layers."""
        return sum(self.layers.sizes[:count])

    def cache_of(self, count: int) -> int:
        """Bytes of the cache of so many layers; the output has none."""
        blocks = max(1, self.layers.count - 1)
        return self.cache * max(0, count - 1) // blocks

    def on_device(self, count: int, devices: int) -> int:
        """Bytes that so many layers take on so many devices."""
        return self.weights_of(count) + self.cache_of(count) + self.buffers * devices if count else 0

    def fitting(self, memory: Sequence[int]) -> int:
        """How many layers fit on devices of so much memory each.

        llama.cpp spreads them by memory, in whole layers: so of all devices but one, a layer's room is left.
        """
        used = [size for size in memory if size > MARGIN + self.buffers]
        room = sum(used) - MARGIN * len(used) - max(self.layers.sizes) * max(0, len(used) - 1)
        count = 0
        while count < self.layers.count and self.on_device(count + 1, len(used)) <= room:
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class Split:
    """So many layers on the devices, and bytes of what they take there; ``least`` is what they need at least.

    ``free`` bytes are free there now. ``unified`` memory is also the host's.
    """

    layers: int
    weights: int
    cache: int
    device: int
    least: int
    free: int
    unified: bool


def split(demand: Demand, wanted: int, devices: Sequence[Device], now: bool) -> Split | None:
    """Where the layers go: all that fit when ``wanted`` is -1, else as many as that. None without a GPU.

    ``now`` is what fits into the memory that is free now, else what would fit if no other model were there.
    """
    if not devices or not wanted:
        return None
    sizes = [device.free if now else device.total for device in devices]
    count = demand.fitting(sizes) if wanted < 0 else min(wanted, demand.layers.count)
    device = demand.on_device(count, len(devices))
    return Split(
        count,
        demand.weights_of(count),
        demand.cache_of(count),
        device,
        least=0 if wanted < 0 else device,
        free=sum(max(0, one.free - MARGIN) for one in devices),
        unified=any(one.unified for one in devices),
    )
