"""Choosing which files of a repository make one model. Pure: a listing in, a choice out.

A repository usually holds the same model several times: quantizations, shards, other formats. ``choose`` takes
GGUF before safetensors before ONNX, and of that format one variant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from myllm_core.errors import NotFound

GGUF_ORDER = (
    "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q8_0", "Q5_K_S", "Q6_K", "Q5_0", "Q4_1", "Q5_1", "IQ4_XS", "IQ4_NL",
    "F16", "BF16",
)  # fmt: skip
"""GGUF quantizations, the one that is taken first when none is asked for."""

PROJECTOR_ORDER = ("F16", "BF16", "Q8_0", "F32")
"""Precisions of a projector for images, the one that is taken first: smaller ones see worse, larger ones no better."""

ONNX_ORDER = ("q4", "quantized", "int8", "uint8", "q4f16", "fp16", "")
"""Suffixes of ``model_*.onnx``, the one that is taken first when none is asked for; empty is full precision."""

_QUANT = re.compile(
    r"(?:^|[-._ ])((?:UD-)?(?:I?Q[1-9](?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?=$|[-._ ])", re.I
)
_PROJECTOR = re.compile(r"(?:^|[-._])mmproj(?:$|[-._])", re.I)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.\w+$)")
_NO_MODEL = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:$|[-._])|^ggml-vocab", re.I)
_MAIN_WEIGHTS = ("model.safetensors", "model.safetensors.safetensors")  # the second is what sharding makes of the first
_OTHER_WEIGHTS = ("consolidated", "adapter_")  # the same weights in another layout, and additions to a base model
_ONNX_GRAPH = re.compile(r"(?:onnx/)?(?:decoder_)?model(?:_merged)?(?:_(?P<quant>\w+))?\.onnx")
_ONNX_FILES = (".onnx", ".onnx.data", ".onnx_data", ".json", ".txt", ".model", ".jinja")
_SIDECARS = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
})  # fmt: skip
_MAX_LISTED = 30


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository: its path with ``/``; bytes and sha256 where the hub says them."""

    path: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """What comes before the name: empty, or ending in ``/``."""
        return self.path[: -len(self.name)]


@dataclass(frozen=True, slots=True)
class Variant:
    """One loadable form of a model: its files, weights first.

    ``label`` is the path that stands for it, ``quant`` what its file name says of the quantization (may be empty),
    ``strip`` the folder that its paths lose when they are installed. ``selector`` is the shortest text that chooses
    it in its repository: the quantization, the label, or nothing for the default.
    """

    label: str
    files: tuple[RepoFile, ...]
    quant: str = ""
    strip: str = ""
    selector: str = ""

    @property
    def stem(self) -> str:
        """The label's file name without folder and suffix."""
        return re.sub(r"\.(gguf|safetensors|onnx)$", "", self.label.rpartition("/")[2], flags=re.I)

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(f.size or 0 for f in self.files)


Formats = dict[str, tuple[list[Variant], tuple[str, ...]]]


def choose(files: Iterable[RepoFile], wanted: str, repo: str) -> Variant:
    """The variant that ``wanted`` names: a quantization, a file, a format, or nothing for the default.

    Raises ``NotFound``, listing what there is, when nothing or more than one thing fits.
    """
    files = sorted(files, key=lambda f: f.path)
    formats: Formats = {
        "gguf": (_gguf_variants(files), GGUF_ORDER),
        "safetensors": (_safetensors_variants(files), ("",)),
        "onnx": (_onnx_variants(files), ONNX_ORDER),
    }
    asked = wanted.lower()
    found = _find({asked: formats[asked]}, "") if asked in formats else _find(formats, wanted)
    if found is None:
        offered = [formats[asked][0]] if asked in formats else [variants for variants, _ in formats.values()]
        raise NotFound(_nothing_fits([v for variants in offered for v in variants], wanted, repo), repo=repo)
    whole, projector = _whole(found, repo), _projector(found, files)
    return replace(whole, files=(*whole.files, *projector), selector=_selector(found, formats))


def _find(formats: Formats, wanted: str) -> Variant | None:
    for variants, order in formats.values():
        if wanted:
            if found := _named(variants, wanted):
                return found
        elif variants:
            return _default(variants, order)
    return None


def _selector(found: Variant, formats: Formats) -> str:
    if not found.quant:
        return "" if _find(formats, "") == found else found.label
    return found.quant if _find(formats, found.quant) == found else found.label


def _default(variants: list[Variant], order: tuple[str, ...]) -> Variant | None:
    for quant in order:
        fitting = [v for v in variants if _plain(v.quant) == _plain(quant)]
        if found := _only(fitting) or _only(v for v in fitting if v.quant.upper() == quant.upper()):
            return found
    return _only(variants)


def _named(variants: list[Variant], wanted: str) -> Variant | None:
    return (
        _only(v for v in variants if wanted == v.label or any(wanted in (f.path, f.name) for f in v.files[:1]))
        or _only(v for v in variants if wanted == v.stem)
        or _only(v for v in variants if v.quant.lower() == wanted.lower())
        or _only(v for v in variants if _plain(v.quant) == _plain(wanted))
    )


def _only(variants: Iterable[Variant]) -> Variant | None:
    found = list(variants)
    return found[0] if len(found) == 1 else None


def _plain(quant: str) -> str:
    """One spelling for names of the same thing: ``UD-Q4_K_M`` is a ``Q4_K_M``, ``fp16`` is ``F16``."""
    return re.sub(r"^fp(?=16|32)", "f", quant.lower().removeprefix("ud-"))


def _groups(files: Iterable[RepoFile]) -> dict[str, tuple[RepoFile, ...]]:
    """Files by their path without the shard number: the shards of one file together."""
    groups: dict[str, list[RepoFile]] = {}
    for file in files:
        groups.setdefault(_SHARD.sub("", file.path), []).append(file)
    return {path: tuple([f for f in group if _SHARD.search(f.path)] or group) for path, group in groups.items()}


def _gguf_variants(files: list[RepoFile]) -> list[Variant]:
    models = (f for f in files if f.name.lower().endswith(".gguf") and not _NO_MODEL.search(f.name[:-5]))
    variants = []
    for path, group in _groups(models).items():
        folder = group[0].folder
        quants = _QUANT.findall(path[len(folder) : -5]) or _QUANT.findall(folder.strip("/").rpartition("/")[2])
        variants.append(Variant(path, group, quants[-1].upper() if quants else "", folder))
    return variants


def _projector(variant: Variant, files: Iterable[RepoFile]) -> list[RepoFile]:
    """The projector for images that belongs to a GGUF model, if there is one: that of the most similar name."""
    if not variant.label.lower().endswith(".gguf"):
        return []
    words = _words(variant.label)

    def rank(file: RepoFile) -> tuple[int, bool, int]:
        quants = [_plain(quant).upper() for quant in _QUANT.findall(file.name[:-5])] or [""]
        order = PROJECTOR_ORDER.index(quants[-1]) if quants[-1] in PROJECTOR_ORDER else len(PROJECTOR_ORDER)
        return -len(words & _words(file.name)), file.folder != variant.strip, order

    found = [f for f in files if f.name.lower().endswith(".gguf") and _PROJECTOR.search(f.name[:-5])]
    return sorted(found, key=rank)[:1]


def _words(path: str) -> set[str]:
    """The words of a file's name that tell models apart, in lower case."""
    name = _QUANT.sub("", path.rpartition("/")[2].rpartition(".")[0])
    return {word for word in re.split(r"[-._ ]", name.lower()) if word not in ("", "mmproj", "model")}


def _safetensors_variants(files: list[RepoFile]) -> list[Variant]:
    sidecars = tuple(f for f in files if f.path in _SIDECARS)
    weights = (f for f in files if not f.folder and f.name.endswith(".safetensors"))
    variants = []
    for path, group in _groups(weights).items():
        if path in _MAIN_WEIGHTS:
            variants.append(Variant(_MAIN_WEIGHTS[0], (*group, *sidecars)))
        elif not path.startswith(_OTHER_WEIGHTS):
            variants.append(Variant(path, (*group, *sidecars), path.removesuffix(".safetensors")))
    return variants


def _onnx_variants(files: list[RepoFile]) -> list[Variant]:
    genai = [f.folder for f in files if f.name == "genai_config.json"]
    if genai:
        return [_genai_variant(files, folder) for folder in genai]
    sidecars = tuple(f for f in files if f.path in _SIDECARS and "safetensors" not in f.name)
    variants = []
    for file in files:
        if match := _ONNX_GRAPH.fullmatch(file.path):
            data = tuple(f for f in files if f.path.startswith((f"{file.path}_data", f"{file.path}.data")))
            variants.append(Variant(file.path, (file, *data, *sidecars), match["quant"] or ""))
    return variants


def _genai_variant(files: list[RepoFile], folder: str) -> Variant:
    own = [f for f in files if f.folder == folder and f.name.endswith(_ONNX_FILES)]
    own.sort(key=lambda f: not f.name.endswith(".onnx"))
    return Variant(folder.rstrip("/") or "onnx", tuple(own), strip=folder)


def _whole(variant: Variant, repo: str) -> Variant:
    names = {f.name for f in variant.files}
    shards = [match for name in names if (match := _SHARD.search(name))]
    wanted = {
        _SHARD.sub(f"-{number:05}-of-{shard[2]}", shard.string)
        for shard in shards
        for number in range(1, min(int(shard[2]), 1000) + 1)
    }
    if missing := sorted(wanted - names):
        raise NotFound(f"{repo} lacks {', '.join(missing[:3])}, a part of {variant.label}; choose another", repo=repo)
    return variant


def _nothing_fits(variants: list[Variant], wanted: str, repo: str) -> str:
    if not variants:
        asked = f" (asked for {wanted})" if wanted else ""
        return f"{repo} holds no GGUF, safetensors or ONNX model{asked}; look for a repository whose name ends in -GGUF"
    by_quant = len({v.quant for v in variants}) == len(variants)  # else only the paths tell them apart
    choices = [(v.quant if by_quant and v.quant else v.label, v.size) for v in variants]
    listed = ", ".join(f"{choice} ({_human(size)})" for choice, size in choices[:_MAX_LISTED])
    more = f" and {len(choices) - _MAX_LISTED} more" if len(choices) > _MAX_LISTED else ""
    head = f"{wanted} fits nothing, or several, in {repo}" if wanted else f"{repo} holds several models"
    return f"{head}; ask for one of them, such as hf:{repo}:{choices[0][0]}; there is: {listed}{more}"


def _human(size: int) -> str:
    if not size:
        return "size unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
