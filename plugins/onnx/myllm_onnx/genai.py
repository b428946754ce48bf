"""Models made for ONNX Runtime GenAI: it keeps the cache, the core chooses the tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from myllm_core.errors import EngineError, IntegrityError
from myllm_core.machine import free_cores
from myllm_core.sampler import Floats
from myllm_onnx.layout import Layout, library_error
from myllm_onnx.options import LoadSettings

_LEAST_ROOM = 512


class GenaiBackend:
    """A GenAI model with a generator for each sequence, which it computes one after the other."""

    def __init__(self, layout: Layout, settings: LoadSettings, context_size: int) -> None:
        """Load the model. Raises ``EngineError``, and ``IntegrityError`` for a configuration without its numbers."""
        import onnxruntime_genai

        self._og: Any = onnxruntime_genai
        self._og.disable_telemetry_events()
        vocab_size = layout.genai.get("vocab_size")
        if type(vocab_size) is not int or vocab_size < 1:
            raise IntegrityError("genai_config.json doesn't say how large the vocabulary is; pull the model again")
        self.vocab_size: int = vocab_size
        self._context_size = context_size
        self._generators: dict[int, Any] = {}
        session = {
            "intra_op_num_threads": settings.intra_op_num_threads or free_cores(),
            "session.intra_op.allow_spinning": "1" if settings.allow_spinning else "0",
        }
        try:
            config = self._og.Config(str(layout.graph.parent))
            config.clear_providers()
            if settings.provider != "cpu":
                config.append_provider(settings.provider)
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self._model: Any = self._og.Model(config)
        except Exception as error:  # noqa: BLE001 - the library raises whatever it likes
            raise library_error(f"ONNX Runtime GenAI can't load {layout.graph.name}", error) from None

    def open(self, number: int, room: int) -> int:
        """Begin a sequence. The cache is allocated for all of its room, which is made ready for a further turn."""
        room = min(self._context_size, max(_LEAST_ROOM, 1 << (room - 1).bit_length()))
        try:
            params = self._og.GeneratorParams(self._model)
            params.set_search_options(max_length=room, num_beams=1, batch_size=1)
            self._generators[number] = self._og.Generator(self._model, params)
        except Exception as error:  # noqa: BLE001 - the library raises whatever it likes
            raise library_error("a sequence can't begin", error) from None
        return room

    def read(self, number: int, tokens: list[int]) -> Floats:
        """Put tokens behind a sequence; the logits of what comes next."""
        generator = self._generators[number]
        try:
            generator.append_tokens(np.array(tokens, np.int32))
            logits = generator.get_logits()
        except Exception as error:  # noqa: BLE001 - the library raises whatever it likes
            raise library_error("ONNX Runtime GenAI failed", error) from None
        row: Floats = np.array(logits.reshape(-1, logits.shape[-1])[-1], np.float32)
        if len(row) != self.vocab_size:
            raise EngineError("the model's output has another width than genai_config.json says; pull it again")
        return row

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """One token more of each sequence."""
        return [self.read(number, [token]) for number, token in tokens.items()]

    def cut(self, number: int, length: int) -> bool:
        """Take a sequence back to its first tokens, where the model's cache can do that."""
        try:
            self._generators[number].rewind_to(length)
        except Exception:  # noqa: BLE001 - sliding windows can't, and on some devices none can
            return False
        return True

    def close(self, number: int) -> None:
        """Free a sequence's cache."""
        self._generators.pop(number, None)

    def free(self) -> None:
        """Free the model."""
        self._generators.clear()
        self._model = None
