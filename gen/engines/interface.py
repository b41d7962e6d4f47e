"""What an engine is: the base classes of those that write captions, draw images and describe them.

Class methods say what is known of an engine before it is loaded, from its section of the configuration. The engines by
name are in `synthclip_jax.config.registry`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np
from jaxtyping import UInt8

from gen.engines import smollm2
from gen.engines.chat_templates import Conversation
from gen.engines.models import folder_digest
from synthclip_jax.config.generation import Captions, Images, Recaption
from synthclip_jax.errors import UserError

Pixels = UInt8[np.ndarray, "side side 3"]
Settings = TypeVar("Settings", Captions, Images, Recaption)  # an engine's section of the configuration
Asking = TypeVar("Asking", Captions, Recaption)


class EngineError(UserError, ValueError):
    """An engine cannot be loaded; the text says what to install or to change."""


class Engine(Generic[Settings]):
    """What all engines have. Loads its model when it is made."""

    has_own_process = False  # its model runs in another process than the one that calls it, on all cores

    def __init__(self, settings: Any = None):
        """Loads what it needs, as its section of the configuration says; nothing, if it needs nothing."""

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """The engine with its model, as its section of the configuration says."""
        return cls(settings)

    @classmethod
    def gpus(cls, settings: Settings) -> int:
        """GPUs that one copy of it can use."""
        return 1

    @classmethod
    def identity(cls, settings: Settings) -> dict[str, Any]:
        """What its work depends on beside prompt, sampling and seed, for the plan; loads no model.

        Speed settings (device, batch size, threads) are left out: they may change between two runs of one plan.
        """
        raise NotImplementedError

    @classmethod
    def credit(cls, settings: Settings) -> str:
        """What the dataset card says of it.

        Args:
          settings: without the places of files.
        """
        return f"`{settings.model}` (see its licence)"

    def close(self) -> None:
        """Gives the model's memory back."""


class TextEngine(Engine[Asking]):
    """Answers conversations with a language model."""

    @classmethod
    def gpus(cls, settings: Asking) -> int:
        """See `Engine`."""
        return settings.tensor_parallel

    @classmethod
    def shards_at_once(cls, settings: Asking) -> int:
        """How many shards it works on at once; `generate` is called from that many threads."""
        return 1

    @classmethod
    def is_random(cls, settings: Asking) -> bool:
        """Whether another seed can give another answer."""
        return bool(settings.temperature)

    @classmethod
    def identity(cls, settings: Asking) -> dict[str, Any]:
        """See `Engine`."""
        identity = {key: settings[key] for key in ("engine", "model", "revision", "dtype")}
        weights = smollm2.gguf_digest() if settings.model == smollm2.NAME else folder_digest(settings.model)
        return identity | ({"weights": weights} if weights else {})

    @classmethod
    def credit(cls, settings: Asking) -> str:
        """See `Engine`."""
        model = smollm2.CREDIT if settings.model == smollm2.NAME else f"`{settings.model}` (see its licence)"
        return f"{model}, engine `{settings.engine}`"

    def generate(
        self, conversations: Sequence[Conversation], seeds: Sequence[int]
    ) -> Iterator[tuple[int, str | Exception]]:
        """Answers each conversation once; an `Answer` says why it ended, which a plain text does not know.

        Args:
          conversations: chat messages, `{"role":..., "content":...}`.
          seeds: one per conversation, for its draws.

        Yields:
          The number of a conversation and its answer, as answers become ready; in the place of one, the exception
          that this conversation alone raises, where the engine can tell.
        """
        raise NotImplementedError


class CaptionEngine(TextEngine[Captions]):
    """Writes captions."""

    @classmethod
    def conversation(cls, captions: Captions, concept: str, others: Sequence[str] = ()) -> Conversation:
        """The chat that asks for a caption: system message, examples as earlier turns, then the question.

        Everything up to the concept is the same in all chats, so engines compute it once.

        Args:
          captions: `config.gen.captions`.
          concept: what the caption is about.
          others: concepts that the image shows as well; they stand for the prompt's `{others}`.
        """

        def question(concept: str, others: str) -> dict[str, str]:
            text = captions.prompt.replace("{others}", others).replace("{concept}", concept)
            return {"role": "user", "content": text}

        messages = [{"role": "system", "content": captions.system}] if captions.system else []
        for example, caption, *rest in captions.examples:
            messages.append(question(example, listing(rest)))
            messages.append({"role": "assistant", "content": caption})
        messages.append(question(concept, listing(others)))
        return messages


class VisionEngine(TextEngine[Recaption]):
    """Describes images."""

    def question(self, image: Any, prompt: str) -> Conversation:
        """The chat that asks about an image (PIL)."""
        raise NotImplementedError


def listing(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


@dataclasses.dataclass(frozen=True)
class Request:
    """One image to make. The seed is all that its randomness depends on."""

    caption: str
    concept: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Rejected:
    """No image, and why; `retry` says whether another seed can help, `detail` what an engine said that raised."""

    reason: str
    retry: bool
    detail: str = ""


Outcomes = Callable[[], Sequence[Pixels | Rejected]]


class ImageEngine(Engine[Images]):
    """Makes images from captions.

    Attributes:
      batch_size: images at once, which may change while it works; 0: as configured.
      device_name: the accelerators that it draws on, where torch does not know them; empty: it has none of its own.
    """

    has_presets = False  # it draws as `gen.images.preset` says
    batch_size = 0
    device_name = ""

    @classmethod
    def note(cls, images: Images) -> str:
        """What to say before it draws; empty: nothing."""
        return ""

    def generate(self, requests: Sequence[Request]) -> Sequence[Pixels | Rejected]:
        """One outcome per request, in order; an image depends on its own request alone."""
        raise NotImplementedError

    def launch(self, requests: Sequence[Request]) -> Outcomes:
        """Starts a batch; what is returned waits for its outcomes. Here nothing goes on meanwhile."""
        outcomes = self.generate(requests)
        return lambda: outcomes

    def warm_up(self, requests: Sequence[Request]) -> None:
        """Does what is done only once, such as compiling, before the time is taken."""
