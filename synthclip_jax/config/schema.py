"""Every configuration value: type, default, what is allowed, what it means.

The defaults are the SynthCLIP paper's recipe (arXiv 2402.01832), so that a config file states only how an experiment
differs from it. Nothing heavy is imported here. The section `gen` is in `synthclip_jax.config.generation`.
"""

import math
from typing import Any

from synthclip_jax.config import registry
from synthclip_jax.config.fields import Section, Tree, tree, value
from synthclip_jax.config.generation import Gen
from synthclip_jax.images.headers import MAX_PIXELS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Data(Section):
    """What training reads, and how an image becomes what the model sees."""

    path: str = value("", "dataset folder; empty: the one this workdir generates")
    sources: tuple[Any, ...] = value(
        (),
        "datasets to train on together instead of `path`, each a text 'KIND:PLACE' or a tuple ('KIND:PLACE', weight,"
        " image_key, caption_key, part), where items may be left out; KIND:"
        f" {', '.join(registry.SOURCES)}",
    )
    split: str = value("train", "split of the dataset")
    part: float = value(
        1.0,
        "how much of each dataset is used: a share (0.05), or a number of examples (500_000); chosen by the seed, and a"
        " smaller part is inside a larger one",
        low=1e-9,
    )
    image_key: str = value("image", "feature with the encoded image")
    recaptions: str = value(
        "none",
        "use of gen.recaption's captions: none; instead of the image's own, where there is one; or both, one of them"
        " drawn at each step",
        choices=("none", "instead", "both"),
    )
    caption_key: str = value("caption", "feature with the caption; of several captions one is drawn at each step")
    min_agreement: float = value(
        -1.0,
        "lowest agreement score of a generated pair to train on; -1: all pairs, scored or not",
        low=-1.0,
        high=1.0,
    )
    image_size: int = value(224, "side of the model's input image, pixels", low=8)
    crop_scale: tuple[float, float] = value((0.5, 1.0), "random crop: share of the area", low=0.01, high=1.0)
    crop_ratio: tuple[float, float] = value((3 / 4, 4 / 3), "random crop: width over height", low=0.1, high=10.0)
    interpolation: str = value("bilinear", "resampling of images", choices=("bilinear", "bicubic"))
    mean: tuple[float, float, float] = value(IMAGENET_MEAN, "per-channel mean, of pixels in [0, 1]", low=0.0, high=1.0)
    std: tuple[float, float, float] = value(
        IMAGENET_STD, "per-channel standard deviation, of pixels in [0, 1]", low=1e-6, high=1.0
    )
    grayscale: float = value(0.0, "probability of turning a training image gray", low=0.0, high=1.0)
    invert: float = value(0.0, "probability of inverting a training image's brightness", low=0.0, high=1.0)
    flip: float = value(0.0, "probability of mirroring a training image", low=0.0, high=1.0)
    max_pixels: int = value(
        MAX_PIXELS,
        "largest image that is decoded, width times height; a larger one counts as damaged and takes no memory",
        low=1,
    )
    threads: int = value(0, "threads that read and decode, per process; 0: one more than cores, at most 16", low=0)
    workers: int = value(0, "worker processes; 0: threads of this process do the work", low=0)
    prefetch: int = value(2, "batches kept ready", low=1)
    cache: bool = value(False, "keep all decoded images in memory; pays where images are few and small")
    check_crc: bool = value(True, "check every record's checksum when it is read")
    verify: bool = value(False, "read every shard to its end before training and name damaged ones")
    on_error: str = value(
        "raise",
        "for unreadable shards and images: raise stops, skip counts and skips them",
        choices=("raise", "skip"),
    )
    allow_outside: bool = value(
        False, "read images outside a table's folder: absolute paths, '..', links that lead out of it"
    )
    text_buckets: tuple[int, ...] = value(
        (), "text is trimmed to the shortest of these lengths that holds a batch's longest caption", low=3
    )


class Vision(Section):
    """The image tower."""

    width: int = value(768, "channels", low=1)
    layers: int = value(12, "transformer blocks", low=1)
    heads: int = value(12, "attention heads", low=1)
    patch_size: int = value(16, "side of a patch, pixels", low=1)


class Text(Section):
    """The text tower."""

    width: int = value(512, "channels", low=1)
    layers: int = value(12, "transformer blocks", low=1)
    heads: int = value(8, "attention heads", low=1)
    context_length: int = value(77, "tokens per caption, start and end included", low=3)
    vocab_size: int = value(49_408, "entries of the vocabulary", low=49_408)


class Model(Section):
    """The two towers."""

    tower: str = value(
        "slip", "image tower: slip (timm's ViT, the paper) or openai (OpenAI CLIP's)", choices=("slip", "openai")
    )
    embed_dim: int = value(512, "width of the shared embedding", low=1)
    quick_gelu: bool = value(
        True, "text tower and openai tower: QuickGELU (OpenAI, the paper), or exact GELU (most of open_clip's weights)"
    )
    logit_bias: bool = value(False, "learned bias on the logits; the sigmoid loss needs it")
    compute_dtype: str = value("bfloat16", "activations; parameters are float32", choices=("bfloat16", "float32"))
    remat: str = value(
        "auto",
        "activations recomputed in the backward pass; auto: elementwise on TPUs, else none",
        choices=("auto", "none", "elementwise", "dots", "full"),
    )
    scan_layers: bool = value(True, "run layers as one scanned loop (quick compile) or unrolled (3-10% quicker steps)")
    attention: str = value(
        "auto",
        "attention kernel: pallas for TPUs, cudnn for GPUs in bfloat16, xla; auto takes the first of them that can run",
        choices=("auto", "xla", "cudnn", "pallas"),
    )
    vision: Vision
    text: Text


class Mesh(Section):
    """How many devices there are along each axis of the mesh."""

    data: int = value(-1, "devices along the batch; -1: all remaining ones", low=-1)
    fsdp: int = value(1, "devices that share parameters and batch", low=-1)
    tensor: int = value(1, "devices that share each layer", low=-1)


class Train(Section):
    """Loss, optimizer, checkpoints, log."""

    batch_size: int = value(4096, "pairs per step, over all devices", low=1)
    epochs: float = value(40.0, "passes over the dataset", low=0.0)
    microbatch: int = value(
        0, "pairs embedded at once, over all devices; the gradient is that of the whole batch; 0: all of them", low=0
    )
    loss: str = value("softmax", "contrastive loss: softmax (CLIP) or sigmoid (SigLIP)", choices=("softmax", "sigmoid"))
    loss_method: str = value(
        "dense",
        "dense: the whole similarity matrix; ring: block by block, memory grows with the batch and not its square",
        choices=("dense", "ring"),
    )
    loss_block: int = value(1024, "ring: rows and columns of the similarity matrix held at once on a device", low=1)
    learning_rate: float = value(5e-4, "peak", low=0.0)
    lr_start: float = value(1e-6, "at the first step of the warm-up", low=0.0)
    lr_end: float = value(1e-5, "at the last step, unless it stays constant", low=0.0)
    warmup_epochs: float = value(1.0, "linear warm-up", low=0.0)
    schedule: str = value(
        "cosine",
        "learning rate after the warm-up: cosine down to lr_end; or constant, and at the end a line down to lr_end",
        choices=("cosine", "constant"),
    )
    cooldown: float = value(0.0, "constant: share of all steps, at the end, that go down to lr_end", low=0.0, high=1.0)
    optimizer: str = value(
        "adamw", "update rule; muon takes the matrices inside the blocks, adamw the rest", choices=registry.OPTIMIZERS
    )
    beta1: float = value(0.9, "AdamW, Lion", low=0.0, high=1.0)
    beta2: float = value(0.98, "AdamW, Lion", low=0.0, high=1.0)
    eps: float = value(1e-8, "AdamW", low=0.0)
    momentum: float = value(0.95, "Muon", low=0.0, high=1.0)
    weight_decay: float = value(0.5, "decoupled and scaled by the learning rate", low=0.0)
    no_decay: tuple[str, ...] = value(
        (r"bias", r"ln", r"norm", r"logit_scale"),
        "regular expressions, searched in paths, of parameters without decay; vectors and scalars never decay",
    )
    learning_rate_multipliers: tuple[tuple[Any, ...], ...] = value(
        (), "(regular expression, factor) pairs; the first one found in a parameter's path counts"
    )
    frozen: tuple[str, ...] = value((), "regular expressions, searched in paths, of parameters that are not trained")
    logit_scale_init: float = value(math.log(1 / 0.07), "start of the learned log temperature")
    logit_bias_init: float = value(-10.0, "start of the learned bias of the logits, if the model has one")
    logit_scale_max: float = value(math.log(100), "clamped to [0, this] after every step", low=0.0)
    grad_clip: float = value(0.0, "largest global gradient norm; 0: no clipping", low=0.0)
    ema: float = value(
        0.0, "decay of an average of the parameters, which is evaluated instead of them; 0: none", low=0.0, high=0.99999
    )
    products: str = value(
        "full",
        "products of the blocks with their weights, forward and back to inputs: full (model.compute_dtype), or int8"
        " with a scale for each token and channel (SwitchBack)",
        choices=("full", "int8"),
    )
    patch_dropout: float = value(0.0, "share of an image's patches left out in training (FLIP)", low=0.0, high=0.95)
    init_from: str = value("", "workdir or checkpoint whose parameters this run starts from; empty: random ones")
    init_positions: str = value(
        "bicubic",
        "init_from with images of another size: how the grid of positions is interpolated, bicubic (open_clip) or"
        " bilinear (big_vision)",
        choices=("bicubic", "bilinear"),
    )
    init_text_positions: str = value(
        "linear",
        "init_from with texts of another length: positions interpolated (linear: open_clip, CLIPA), or the first ones"
        " kept (cut: short captions are embedded as before)",
        choices=("linear", "cut"),
    )
    non_finite: str = value(
        "stop",
        "for a loss or gradient that is not finite: stop, or skip the update and count it",
        choices=("stop", "skip"),
    )
    log_every: int = value(50, "steps between two log lines", low=1)
    save_every: int = value(1000, "steps between two checkpoints", low=1)
    eval_every: int = value(0, "steps between two evaluations; 0: only at the end", low=0)
    keep: int = value(2, "newest checkpoints kept", low=1)
    keep_every: int = value(0, "also keep checkpoints at multiples of this many steps; 0: none", low=0)
    keep_best: str = value("", "also keep the best checkpoint by this metric, such as zeroshot/NAME/acc1; empty: none")
    tensorboard: bool = value(True, "also write TensorBoard files, where the package is installed")
    wandb: str = value("", "Weights & Biases project, where the package is installed; empty: none")
    trackio: str = value("", "Trackio project, where the package is installed; empty: none")
    profile: tuple[int, int] = value((0, 0), "(first, last) step to profile; (0, 0): none", low=0)
    peer_timeout: int = value(100, "heartbeat timeout, seconds, after which all processes exit", low=1)
    mesh: Mesh


class Features(Section):
    """What linear_probe and fewshot learn from."""

    layer: str = value(
        "tower",
        "tower: the image tower's output before the projection, as in the paper's evaluators; or the embedding",
        choices=("tower", "embedding"),
    )
    interpolation: str = value(
        "bicubic",
        "resampling of images: the paper's evaluators' own; empty: as the checkpoint has it",
        choices=("bicubic", "bilinear", ""),
    )
    folder: str = value(
        "", "folder of cached features; empty: eval/features of the workdir, during training memory alone"
    )


class LinearProbe(Section):
    """The suite linear_probe."""

    penalty: str = value(
        "norm",
        "penalty divided by the cost C: the norm of the weights (the paper's evaluator) or its square (scikit-learn)",
        choices=("norm", "squared"),
    )
    max_iter: int = value(1000, "maximum of L-BFGS iterations for each value of C", low=1)


class Fewshot(Section):
    """The suite fewshot."""

    episodes: int = value(5000, "episodes drawn", low=2)
    ways: int = value(5, "classes of an episode", low=2)
    shots: int = value(5, "training images per class", low=1)
    queries: int = value(6, "test images per class", low=1)


class Corruptions(Section):
    """The suite corruptions."""

    kinds: tuple[str, ...] = value(
        tuple(registry.CORRUPTIONS), "what is done to images, one after the other", choices=registry.CORRUPTIONS
    )
    severities: tuple[int, ...] = value((1, 2, 3, 4, 5), "how much of it", low=1, high=5)
    images: int = value(0, "images of each test set that are taken, evenly spread over it; 0: all", low=0)


class Eval(Section):
    """What is evaluated, and on which test sets."""

    suites: tuple[str, ...] = value(
        ("zeroshot",),
        "evaluation suites, each run on the test sets that suit it; see synthclip_jax.evals.suite",
        choices=registry.SUITES,
    )
    datasets: tuple[str, ...] = value(
        (),
        "test sets: 'wds:FOLDER' (CLIP_benchmark's layout), 'folder:FOLDER' (one folder a class), 'tfds:NAME',"
        " 'karpathy:FILE.json' or 'choice:FILE.json', with 'NAME=' before it to rename; relative to the workdir",
    )
    allow_outside: bool = value(False, "read images outside a test set's folder, where links or paths in it lead there")
    batch_size: int = value(256, "images encoded at once", low=1)
    templates: str = value(
        "", "prompt set; empty: the test set's own templates, else the set of its name, else 'simple'"
    )
    features: Features
    linear_probe: LinearProbe
    fewshot: Fewshot
    corruptions: Corruptions


class Config(Section):
    """The whole configuration."""

    name: str = value("synthclip", "name of the experiment and of its dataset: lower-case letters, digits, underscores")
    seed: int = value(0, "seed of every random draw", low=0, high=2**63 - 1)
    gen: Gen
    data: Data
    model: Model
    train: Train
    eval: Eval


SCHEMA: Tree = tree(Config)
