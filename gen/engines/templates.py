"""The `templates` engine: no language model, the paper's NaiveCLIP."""

from collections.abc import Iterator, Sequence
from typing import Any

from gen.engines.chat_templates import Conversation
from gen.engines.interface import CaptionEngine
from synthclip_jax.config.generation import Captions


class TemplatesEngine(CaptionEngine):
    """Fills the concept into a prompt template that the seed draws. Questions are concepts."""

    def __init__(self, captions: Captions):
        self.templates = caption_templates(captions)

    @classmethod
    def gpus(cls, settings: Captions) -> int:
        """See `Engine`."""
        return 0

    @classmethod
    def is_random(cls, settings: Captions) -> bool:
        """See `TextEngine`."""
        return True

    @classmethod
    def identity(cls, settings: Captions) -> dict[str, Any]:
        """See `Engine`."""
        return {"engine": "templates", "templates": list(caption_templates(settings))}

    @classmethod
    def credit(cls, settings: Captions) -> str:
        """See `Engine`."""
        own = f"{len(settings.templates)} sentence templates of the configuration"
        return f"{own if settings.templates else 'the 80 templates of CLIP for ImageNet'}; no language model"

    @classmethod
    def conversation(cls, captions: Captions, concept: str, others: Sequence[str] = ()) -> Conversation:
        """See `CaptionEngine`."""
        return [{"role": "user", "content": " and ".join([concept, *others])}]

    def generate(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """See `TextEngine`."""
        for index, (messages, seed) in enumerate(zip(conversations, seeds, strict=True)):
            yield index, self.templates[seed % len(self.templates)].replace("{concept}", messages[-1]["content"])


def caption_templates(captions: Captions) -> tuple[str, ...]:
    """Texts with `{concept}` in them: the config's own, or OpenAI's 80 for ImageNet."""
    if captions.templates:
        return tuple(captions.templates)
    from synthclip_jax.evals.prompts import SLOT, template_sets

    return tuple(text.replace(SLOT, "{concept}") for text in template_sets()["imagenet80"])
