"""What writes captions, behind one interface: `transformers` (anywhere), `templates` (no model), `vllm` (throughput).

The last one is in `gen.engines.vllm`.
"""

import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gen.answers.peeling import Answer
from gen.engines import smollm2
from gen.engines.chat_templates import ChatTemplate
from synthclip_jax.config.generation import Captions, Recaption
from synthclip_jax.errors import UserError

Conversation = list[dict[str, str]]


class EngineError(UserError, ValueError):
    """An engine cannot be loaded; the text says what to install or to change."""


class CaptionEngine(Protocol):
    """Answers conversations. Loads its model when it is made.

    One with an attribute `overlap` above 1 may be called from that many threads at once.
    """

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
        ...

    def close(self) -> None:
        """Gives the model's memory back."""
        ...


def make_engine(captions: Captions) -> CaptionEngine:
    """Loads the engine that `config.gen.captions` asks for."""
    if captions.engine == "vllm":
        from gen.engines.vllm import VLLMEngine

        return VLLMEngine(captions)
    return TemplatesEngine(captions) if captions.engine == "templates" else TransformersEngine(captions)


def engine_identity(captions: Captions | Recaption) -> dict[str, Any]:
    """What answers depend on beside prompt and sampling, for the plan; loads no model."""
    if captions.engine == "templates":
        return {"engine": "templates", "templates": list(caption_templates(captions))}  # type: ignore[arg-type]
    identity = {key: captions[key] for key in ("engine", "model", "revision", "dtype")}
    if captions.model == smollm2.NAME:
        identity["weights"] = smollm2.gguf_digest()
    elif (folder := pathlib.Path(captions.model)).is_dir():  # a folder's weights can change under its name
        files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.*"))
        identity["weights"] = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    return identity


def caption_templates(captions: Captions) -> tuple[str, ...]:
    """The texts of the engine `templates`, with `{concept}` in them: the config's own, or OpenAI's 80 for ImageNet."""
    if captions.templates:
        return tuple(captions.templates)
    from synthclip_jax.evals.prompts import SLOT, template_sets

    return tuple(text.replace(SLOT, "{concept}") for text in template_sets()["imagenet80"])


def model_location(captions: Captions | Recaption) -> tuple[str, str | None]:
    """Folder or hub id of the model, and the revision of a hub model."""
    if captions.model == smollm2.NAME:
        return str(smollm2.model_folder()), None
    return captions.model, captions.revision or None


class TransformersEngine:
    """Runs a causal language model of transformers, on a CPU or a GPU.

    An answer is a function of conversation and seed, up to the rounding of numbers, which depends on the batch.
    """

    def __init__(self, captions: Captions):
        import torch
        import transformers

        from gen.engines.decoding import Decoder
        from gen.engines.sampling import Sampling

        model, revision = model_location(captions)
        try:
            # Nothing that comes with a model is executed: neither its Python files nor pickled weights.
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                model, revision=revision, trust_remote_code=False
            )
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                model,
                revision=revision,
                dtype=getattr(torch, captions.dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise not_found(captions, error) from error
        self.template = ChatTemplate(self.tokenizer, captions)
        device = captions.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device).eval()
        end = self.model.generation_config.eos_token_id
        end_tokens = end if isinstance(end, list) else [end]
        sampling = Sampling(captions.temperature, captions.top_p, captions.presence_penalty, captions.frequency_penalty)
        self.decoder = Decoder(
            self.model,
            [*end_tokens, self.tokenizer.eos_token_id],
            sampling,
            captions.batch_size,
            captions.max_new_tokens,
        )

    def generate(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """See `CaptionEngine`.

        Raises:
          TemplateError: the model's chat template refuses the chat.
        """
        texts = [self.template(messages) for messages in conversations]
        # The template writes the special tokens itself; adding them again would double the first one.
        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for index, tokens, reason in self.decoder(prompts, seeds):
            yield index, Answer(self.tokenizer.decode(tokens, skip_special_tokens=True), reason)

    def close(self) -> None:
        """See `CaptionEngine`."""
        del self.model, self.decoder


class TemplatesEngine:
    """Fills the concept into a prompt template that the seed draws: no language model, the paper's NaiveCLIP.

    Questions are concepts (see `gen.captions.conversation`).
    """

    def __init__(self, captions: Captions):
        self.templates = caption_templates(captions)

    def generate(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """See `CaptionEngine`."""
        for index, (messages, seed) in enumerate(zip(conversations, seeds, strict=True)):
            yield index, self.templates[seed % len(self.templates)].replace("{concept}", messages[-1]["content"])

    def close(self) -> None:
        """See `CaptionEngine`."""


def not_found(
    captions: Captions | Recaption, error: Exception, key: str = "gen.captions.model"
) -> smollm2.ModelNotFound:
    """The error that says which model could not be loaded and what to give instead."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return smollm2.ModelNotFound(
        f"{key}: {captions.model!r} cannot be loaded ({reason}). Give a folder with config.json,"
        " tokenizer and safetensors, the id of a hub model that this machine can reach, or 'smollm2'"
    )
