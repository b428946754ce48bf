"""Optimum's classes around ONNX Runtime: a decoder that keeps a cache for each sequence, and an encoder.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.embedding import Ints
from myllm_core.errors import EngineError
from myllm_core.machine import free_cores
from myllm_core.sampler import Floats
from myllm_optimum.files import Export, older_config
from myllm_optimum.options import LoadSettings


def load(export: Export, settings: LoadSettings) -> Any:
    """The model as Optimum has it, from a configuration that was looked at. Raises ``EngineError``."""
    import onnxruntime
    import transformers
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForFeatureExtraction

    transformers.utils.logging.set_verbosity_error()
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_num_threads or free_cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given = dict(older_config(export.files.config("config.json")))
    try:
        config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
        session = onnxruntime.InferenceSession(str(export.graph), options, providers=["CPUExecutionProvider"])
        cls = ORTModelForCausalLM if export.writes else ORTModelForFeatureExtraction
        return cls(config=config, session=session, use_io_binding=False)
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever they like
        raise failure(f"Optimum can't load {Path(export.graph).name}", error) from None


def failure(what: str, error: Exception) -> EngineError:
    """What a library raised, as one line."""
    return EngineError(f"{what}: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}")


class DecoderBackend:
    """Sequences on a model that writes, one after the other: Optimum knows each family's cache, of whatever form."""

    def __init__(self, model: Any, vocab_size: int) -> None:
        self._model = model
        self._pasts: dict[int, Any] = {}
        self._lengths: dict[int, int] = {}
        self.vocab_size = vocab_size or self._find_width()

    def _find_width(self) -> int:
        self.open(0, 1)
        width = len(self.read(0, [0]))
        self.close(0)
        return width

    def open(self, number: int, room: int) -> int:
        """Begin a sequence; memory is taken as it grows."""
        self._pasts[number], self._lengths[number] = None, 0
        return 2**31

    def read(self, number: int, tokens: list[int]) -> Floats:
        """Put tokens behind a sequence; the logits of what comes next."""
        total = self._lengths[number] + len(tokens)
        try:
            with torch.inference_mode():
                out = self._model(
                    input_ids=torch.tensor([tokens]),
                    attention_mask=torch.ones((1, total), dtype=torch.long),
                    past_key_values=self._pasts[number],
                    use_cache=True,
                )
        except Exception as error:  # noqa: BLE001 - the libraries raise whatever they like
            raise failure("Optimum failed", error) from None
        self._pasts[number], self._lengths[number] = out.past_key_values, total
        row: Floats = out.logits[0, -1].float().numpy().copy()
        return row

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """One token more of each sequence."""
        return [self.read(number, [token]) for number, token in tokens.items()]

    def cut(self, number: int, length: int) -> bool:
        """Take a sequence back to its first tokens, where its cache has the usual form."""
        pasts = self._pasts[number]
        parts = [part for layer in pasts for part in (layer if isinstance(layer, tuple) else (layer,))]
        if not all(part.dim() == 4 and part.shape[2] == self._lengths[number] for part in parts):
            return False
        self._pasts[number] = tuple(tuple(part[:, :, :length].contiguous() for part in layer) for layer in pasts)
        self._lengths[number] = length
        return True

    def close(self, number: int) -> None:
        """Forget a sequence."""
        self._pasts.pop(number, None)
        self._lengths.pop(number, None)

    def free(self) -> None:
        """Free the model."""
        self._pasts.clear()
        self._model = None


class Encoder:
    """Turns token ids into vectors of tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, ids: Ints, mask: Ints) -> Floats:
        """``[rows, tokens, width]`` for ``[rows, tokens]``. Raises ``EngineError``."""
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        try:
            with torch.inference_mode():
                states = self._model(**given, token_type_ids=torch.zeros_like(given["input_ids"])).last_hidden_state
        except Exception as error:  # noqa: BLE001 - the libraries raise whatever they like
            raise failure("Optimum failed", error) from None
        found: Floats = states.float().numpy().astype(np.float32, copy=False)
        return found

    def free(self) -> None:
        """Free the model."""
        self._model = None
