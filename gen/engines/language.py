"""The `transformers` engine of captions: language models on a CPU or a GPU."""

from collections.abc import Iterator, Sequence

from gen.answers.peeling import Answer
from gen.engines.chat_templates import ChatTemplate, Conversation
from gen.engines.interface import CaptionEngine
from gen.engines.models import model_location, not_found
from synthclip_jax.config.generation import Captions


class TransformersEngine(CaptionEngine):
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
        """See `TextEngine`.

        Raises:
          TemplateError: the model's chat template refuses the chat.
        """
        texts = [self.template(messages) for messages in conversations]
        # The template writes the special tokens itself; adding them again would double the first one.
        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for index, tokens, reason in self.decoder(prompts, seeds):
            yield index, Answer(self.tokenizer.decode(tokens, skip_special_tokens=True), reason)

    def close(self) -> None:
        """See `Engine`."""
        del self.model, self.decoder
