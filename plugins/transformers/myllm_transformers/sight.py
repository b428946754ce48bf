"""What ``Decoding`` asks of a model that reads images.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

from myllm_core.sampler import Floats
from myllm_core.types import Image
from myllm_transformers.backend import OneByOne, Together
from myllm_transformers.vision import Vision


class Sight:
    """Images by the model's processor, their rows by its forward pass."""

    def __init__(self, vision: Vision, backend: Together | OneByOne) -> None:
        """Both stay the engine's."""
        self._vision = vision
        self._backend = backend

    def rows(self, image: Image) -> list[int]:
        """The tokens below 0 that stand for an image."""
        return [token for token in self._vision.tokens(image) if token < 0]

    def look(self, number: int, tokens: list[int], image: Image) -> Floats:
        """A piece of a prompt that an image's rows begin and end."""
        return self._backend.look(number, tokens, self._vision.picture(image))
