"""The `transformers` engine of descriptions: vision-language models on a CPU or a GPU."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from gen.answers.peeling import Answer
from gen.engines.chat_templates import ChatTemplate, Conversation
from gen.engines.interface import VisionEngine
from gen.engines.models import not_found
from synthclip_jax.config.generation import Recaption


class TransformersVisionEngine(VisionEngine):
    """Runs an image-text-to-text model of transformers, on a CPU or a GPU.

    With a temperature the first seed of a batch seeds it: answers do not repeat in other batches.
    """

    def __init__(self, settings: Recaption):
        import torch
        import transformers

        self.settings = settings
        revision = settings.revision or None
        try:
            # Nothing that comes with a model is executed: neither its Python files nor pickled weights.
            self.processor = transformers.AutoProcessor.from_pretrained(
                settings.model, revision=revision, trust_remote_code=False
            )
            self.model = transformers.AutoModelForImageTextToText.from_pretrained(
                settings.model,
                revision=revision,
                dtype=getattr(torch, settings.dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise not_found(settings, error, "gen.recaption.model") from error
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device).eval()
        self.processor.tokenizer.padding_side = "left"  # answers continue where the prompts end
        self.template = ChatTemplate(self.processor, settings, "gen.recaption")
        end = self.model.generation_config.eos_token_id
        self.end_tokens = end if isinstance(end, list) else [] if end is None else [end]

    def question(self, image: Any, prompt: str) -> Conversation:
        """See `VisionEngine`."""
        return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]

    def generate(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """See `TextEngine`."""
        import torch
        import transformers

        settings = self.settings
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature:
            sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
        for start in range(0, len(conversations), settings.batch_size):
            batch = conversations[start : start + settings.batch_size]
            inputs = self.processor(
                images=[[messages[-1]["content"][0]["image"]] for messages in batch],
                text=[self.template(messages) for messages in batch],
                padding=True,
                return_tensors="pt",
                add_special_tokens=False,  # the template writes them itself
            ).to(self.model.device, self.model.dtype)
            torch.manual_seed(seeds[start] % 2**63)
            prompt = inputs["input_ids"].shape[1]
            with torch.inference_mode():
                tokens = self.model.generate(
                    **inputs,
                    max_new_tokens=settings.max_new_tokens,
                    logits_processor=transformers.LogitsProcessorList([Penalties(settings, prompt)]),
                    **sampling,
                )[:, prompt:]
            ended = torch.isin(tokens, torch.tensor(self.end_tokens, device=tokens.device)).any(1).tolist()
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            answers = [Answer(text, "stop" if end else "length") for text, end in zip(texts, ended, strict=True)]
            yield from zip(itertools.count(start), answers, strict=False)

    def close(self) -> None:
        """See `Engine`."""
        del self.model


class Penalties:
    """Presence and frequency penalties, as `gen.engines.sampling` defines them, on the tokens after the prompt.

    Args:
      settings: `config.gen.recaption`.
      prompt: tokens of the prompts, padding included.
    """

    def __init__(self, settings: Recaption, prompt: int):
        from gen.engines.sampling import Sampling

        self._sampling = Sampling(
            presence_penalty=settings.presence_penalty, frequency_penalty=settings.frequency_penalty
        )
        self._prompt = prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The logits of the next token, penalised."""
        import torch

        from gen.engines.sampling import penalise

        if not (self._sampling.presence_penalty or self._sampling.frequency_penalty):
            return scores
        generated = input_ids[:, self._prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return penalise(scores.clone(), counts, self._sampling)
