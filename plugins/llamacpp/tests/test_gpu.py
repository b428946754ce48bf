"""Layers on a GPU, by arithmetic: no machine that tests this has one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from myllm_llamacpp import devices, engine, files, hardware, memory, offload
from myllm_llamacpp.devices import Device
from myllm_llamacpp.engine import LlamaCppEngine
from myllm_llamacpp.offload import MARGIN, Demand, Layers, layers_of, split
from myllm_llamacpp.options import LoadSettings

from myllm_core import Manifest, Model, ModelFile, machine
from myllm_core.errors import EngineError, OutOfMemory
from myllm_core.models.gguf import read_gguf

MIB = 2**20
TOY = Demand(Layers((100 * MIB, 50 * MIB, 50 * MIB, 50 * MIB, 50 * MIB)), cache=40 * MIB, buffers=20 * MIB)


def gpu(free, total=None, name="CUDA0", kind=1):
    return Device(name, kind, int(free), int(total or free))


def cards(*free):
    return [gpu(MARGIN + size * MIB, name=f"CUDA{number}") for number, size in enumerate(free)]


@pytest.mark.parametrize(
    ("free", "layers", "device"),
    [
        ([0], 0, 0),
        ([119], 0, 0),
        ([120], 1, 120),  # the output and the buffers
        ([179], 1, 120),
        ([180], 2, 180),  # a block, with its quarter of the cache
        ([360], 5, 360),
        ([5000], 5, 360),
        ([180, 180], 3, 260),  # two sets of buffers; a layer's room is left, since layers aren't cut
        ([200, 200], 3, 260),
        ([300, 300], 5, 380),
        ([5000, 10], 5, 380),
    ],
)
def test_as_many_layers_as_fit(free, layers, device):
    found = split(TOY, -1, cards(*free), now=True)
    assert (found.layers, found.device // MIB) == (layers, device)
    assert found.least == 0
    assert found.free == sum(free) * MIB


def test_a_number_that_was_asked_for_is_kept_and_needs_its_memory():
    found = split(TOY, 3, cards(100), now=True)
    assert (found.layers, found.device // MIB, found.least // MIB) == (3, 240, 240)
    assert (found.weights // MIB, found.cache // MIB) == (200, 20)
    assert split(TOY, 99, cards(100), now=True).layers == 5
    assert split(TOY, 0, cards(100), now=True) is None
    assert split(TOY, -1, [], now=True) is None


def test_what_would_fit_when_others_are_gone():
    [card] = cards(0)
    busy = Device(card.name, card.type, 0, MARGIN + 360 * MIB)
    assert (split(TOY, -1, [busy], now=False).layers, split(TOY, -1, [busy], now=True).layers) == (5, 0)
    assert split(TOY, -1, [busy], now=False).free == 0


def test_the_sizes_of_layers_are_those_of_the_file(smollm2_gguf, tiny):
    layers = layers_of([read_gguf(smollm2_gguf)])
    tensors = {tensor.name: tensor.nbytes for tensor in read_gguf(smollm2_gguf).tensors}
    assert layers.count == 31
    assert layers.sizes[0] == tensors["token_embd.weight"] + tensors["output_norm.weight"]  # it writes with them too
    assert layers.sizes[1] == sum(size for name, size in tensors.items() if name.startswith("blk.29."))
    assert sum(layers.sizes) == sum(tensors.values())
    names = [f"m-{number:05}-of-00002.gguf" for number in (1, 2)]
    assert layers_of([read_gguf(tiny["parts"] / name) for name in names]) == layers_of([read_gguf(tiny["llama"])])


def test_the_estimate_tells_host_and_device_apart(smollm2_gguf):
    header = read_gguf(smollm2_gguf)
    settings, weights, free = LoadSettings(n_ctx=4096), smollm2_gguf.stat().st_size, 16 * 2**30
    shape = memory.shape_of(header)
    demand = Demand(layers_of([header]), *shape.total(settings, weights, free))
    estimated = lambda wanted, *cards: memory.estimate(  # noqa: E731
        shape, settings, weights, free, split(demand, wanted, cards, now=False)
    )
    whole, half, none = (estimated(wanted, gpu(8 * 2**30)) for wanted in (-1, 15, 0))
    assert whole.device > half.device > none.device == 0
    assert whole.host + whole.device == half.host + half.device == none.host
    assert (whole.device_least, half.device_least) == (0, half.device)
    assert whole.device_free == half.device_free == 8 * 2**30 - MARGIN
    shared = estimated(-1, gpu(8 * 2**30, name="Metal"))
    assert (shared.host, shared.device) == (none.host, whole.device)


@pytest.fixture
def on_gpu(monkeypatch, smollm2_gguf):
    """What loading the real model would do on these devices: the layers for them, and the tokens of cache."""

    def room(*found, **options):
        settings = LoadSettings(n_ctx=2048, **options)
        model = Model(Manifest("t:latest", "gguf", (ModelFile(smollm2_gguf.name, 0, ""),)), smollm2_gguf.parent)
        chosen, tokens = engine._room(files.files_of(model, settings), settings, list(found))
        return chosen.n_gpu_layers, tokens

    return room


def test_loading_takes_what_fits_now_and_refuses_more(on_gpu):
    assert on_gpu(gpu(8 * 2**30)) == (31, 2048)
    assert on_gpu(gpu(0, 8 * 2**30)) == (0, 2048)
    some, _ = on_gpu(gpu(MARGIN + 150 * MIB))
    assert 0 < some < 31
    assert on_gpu(gpu(8 * 2**30), n_gpu_layers=7) == (7, 2048)
    with pytest.raises(OutOfMemory, match=r"7 layers need \d+ MiB of GPU memory and 1 are free; set fewer") as error:
        on_gpu(gpu(MARGIN + MIB), n_gpu_layers=7)
    assert error.value.data["needed"] > error.value.data["free"] == MIB
    assert on_gpu() == (-1, 2048)


def test_memory_of_the_host_that_a_gpu_spares_is_not_needed(on_gpu, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    with pytest.raises(OutOfMemory, match="the context needs") as error:
        on_gpu(n_gpu_layers=0)
    monkeypatch.setattr(machine, "free_memory", lambda: error.value.data["needed"] - 10 * MIB)
    assert on_gpu(gpu(8 * 2**30))[0] == 31
    with pytest.raises(OutOfMemory, match="the context needs"):
        on_gpu(gpu(8 * 2**30, kind=2))  # an integrated one's memory is the host's


def test_integrated_gpus_are_taken_only_where_there_is_no_other():
    own, integrated, processor = gpu(1), gpu(2, name="Vulkan1", kind=2), gpu(3, name="CPU", kind=0)
    assert devices._taken([processor, integrated, own]) == [own]
    assert devices._taken([processor, integrated, integrated]) == [integrated]
    assert devices._taken([processor]) == []


def test_ggml_names_the_processor_and_its_memory():
    [processor] = [device for device in devices.all_devices() if device.type == 0]
    assert processor.name == "CPU"
    assert 0 < processor.free <= processor.total


def test_the_server_asks_without_loading_llama_cpp(monkeypatch, smollm2_gguf):
    done = subprocess.run([sys.executable, "-m", "myllm_llamacpp.devices"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    code = """
import sys
from pathlib import Path
from myllm_core import Manifest, Model, ModelFile
from myllm_llamacpp import devices
from myllm_llamacpp.engine import LlamaCppEngine
path = Path(sys.argv[1])
devices.has_gpu_backend = lambda: True
devices.subprocess.run = lambda *args, **kwargs: type("Done", (), {"stdout": sys.argv[2]})
model = Model(Manifest("t:latest", "gguf", (ModelFile(path.name, path.stat().st_size, ""),)), path.parent)
estimate = LlamaCppEngine.estimate(model, {"n_ctx": 2048})
print(estimate.device, estimate.device_free, "llama_cpp" in sys.modules)
"""
    said = json.dumps([{"name": "CUDA0", "type": 1, "free": MARGIN + 5, "total": 2**40}])
    command = [sys.executable, "-c", code, smollm2_gguf, said]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    device, free, loaded = done.stdout.split()
    assert (free, loaded) == ("5", "False")
    assert int(device) > smollm2_gguf.stat().st_size


def test_a_gpu_that_cannot_be_asked_is_an_error_with_a_way_out(monkeypatch, smollm2_gguf):
    monkeypatch.setattr(devices, "has_gpu_backend", lambda: True)
    monkeypatch.setattr(devices.sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match="load the model with n_gpu_layers=0"):
        devices.ask_gpus()
    model = Model(Manifest("t:latest", "gguf", (ModelFile(smollm2_gguf.name, 0, ""),)), smollm2_gguf.parent)
    assert LlamaCppEngine.estimate(model, {"n_gpu_layers": 0}).device == 0


def test_this_llama_cpp_was_built_for_no_gpu():
    assert not hardware.has_gpu_backend()
    assert devices.gpus() == devices.ask_gpus() == []
    assert offload.split(TOY, -1, devices.gpus(), now=True) is None
