"""The engines that a configuration asks for; loads the modules of no others."""

import pkgutil

from gen.engines.interface import CaptionEngine, ImageEngine, VisionEngine
from synthclip_jax.config.generation import Captions, Images, Recaption
from synthclip_jax.config.registry import CAPTION_ENGINES, IMAGE_ENGINES, VISION_ENGINES


def caption_engine(captions: Captions) -> type[CaptionEngine]:
    """The class of `config.gen.captions.engine`."""
    return pkgutil.resolve_name(CAPTION_ENGINES[captions.engine])


def image_engine(images: Images) -> type[ImageEngine]:
    """The class of `config.gen.images.engine`."""
    return pkgutil.resolve_name(IMAGE_ENGINES[images.engine])


def vision_engine(recaption: Recaption) -> type[VisionEngine]:
    """The class of `config.gen.recaption.engine`."""
    return pkgutil.resolve_name(VISION_ENGINES[recaption.engine])


def make_caption_engine(captions: Captions) -> CaptionEngine:
    """The engine of `config.gen.captions`, with its model loaded."""
    return caption_engine(captions).load(captions)


def make_image_engine(images: Images) -> ImageEngine:
    """The engine of `config.gen.images`, with its model loaded."""
    return image_engine(images).load(images)


def make_vision_engine(recaption: Recaption) -> VisionEngine:
    """The engine of `config.gen.recaption`, with its model loaded."""
    return vision_engine(recaption).load(recaption)
