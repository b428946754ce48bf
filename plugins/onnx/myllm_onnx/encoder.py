"""A text encoder's graph on ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from myllm_core.embedding import Ints
from myllm_core.sampler import Floats
from myllm_onnx.layout import ENCODER_OUTPUTS, library_error


class Encoder:
    """Turns token ids into vectors of tokens, or of whole texts where the graph pools them itself."""

    def __init__(self, session: Any) -> None:
        """Take an ``InferenceSession``."""
        self._session = session
        self._inputs = [entry.name for entry in session.get_inputs()]
        outputs = {entry.name for entry in session.get_outputs()}
        self._output = next(name for name in ENCODER_OUTPUTS if name in outputs)

    def run(self, ids: Ints, mask: Ints) -> Floats:
        """``[rows, tokens, width]`` or ``[rows, width]``, for ``[rows, tokens]``. Raises ``EngineError``."""
        places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape).copy()
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": places,
        }
        try:
            [found] = self._session.run([self._output], {name: given[name] for name in self._inputs})
        except Exception as error:  # noqa: BLE001 - the library has a class for each kind of failure, below Exception
            raise library_error("ONNX Runtime failed", error) from None
        states: Floats = found.astype(np.float32, copy=False)
        return states

    def free(self) -> None:
        """Free the session."""
        self._session = None
