"""SynthCLIP's own experiments (arXiv 2402.01832), for who has the machines: what to run, and what it costs.

    python -m synthclip_jax.study --study=configs/studies/paper.py --workdir=W --dry-run
    python -m synthclip_jax.study --study=configs/studies/paper.py:tables,data=/data --workdir=W
    python -m synthclip_jax.study --study=configs/studies/paper.py:text_to_image,pairs=100k --workdir=W

`tables`: table 1 (CC3M, CC12M and SynthCI of 3M to 30M pairs, from scratch) and table 2 (SynthCI-30M finetuned on 0.5M,
2M and 8.8M real pairs, 5 and 10 epochs, and both mixed). `text_to_image`: what the paper leaves open, which model draws
the best training data: five models at their own resolution, guidance 2 (the paper's) and the pipeline's own, captions
of class names, of at most 15 words and of 40 to 60, each with coverage and density beside real images. `all`: both.

`data=`: folder with `cc3m` and `cc12m` as webdataset, the paper's test sets as `evaluate --suite=paper` expects them,
and for the grid `reference`, a folder of some 10,000 real images. `seeds=`: how many; with fewer than 3 no claim is
shown. The factor `paper` names the row of the paper's tables (`synthclip_jax/evals/paper_tables`).

Where this differs from the paper: the smaller SynthCI sets are parts of the one of 30M, drawn uniformly, where the
paper balanced each with a threshold of its own (not published); that saves drawing 41.8M images more. What configs
choose where the paper is silent stands in `configs/synthci_30m.py` and `configs/finetune_real.py`.

A cell is a process. Generation shares its workdir: start the same `python -m gen` on more machines (launch/), and the
cell's own command helps and ends with the last of them. Training on several hosts is started by launch/ in the cell's
workdir W/cells/NAME; the study then finds it finished.
"""

import json
import pathlib
import re
import runpy

from synthclip_jax.config import default_config
from synthclip_jax.plan.chips import CHIPS
from synthclip_jax.study import Cell, Claim, Curve, Rate, Step, Study, Work

ROOT = pathlib.Path(__file__).parents[2]
CARD = "benchmarks/results/nvidia-h100-80gb-hbm3"
EPOCHS = 40
MILLION = 1_000_000
SYNTHETIC = {"3M": 3.0, "8_8M": 8.8, "10M": 10.0, "20M": 20.0, "30M": 30.0}  # millions of pairs
REAL = {"cc3m": 3.0, "cc12m": 8.8}
FINETUNED = {"0_5m": "0.5M", "2m": "2M", "8_8m": "8.8M"}
TRAIN, TABLES, GRID = "train ViT-B/16", "tables", "text_to_image"
PARAMETERS = 149_619_969  # of the paper's model; AdamW keeps two more numbers for each
TOKENS = {"short": 25, "long": 80}  # of a caption
IMAGE_BYTES = 16_900  # of a JPEG of 256 pixels: SynthCI-30M as it was released, about 506 GB
CAPTION_BYTES = 60

# name: hub id, pixels, steps, the pipeline's own guidance (diffusers 0.42), and TFLOP of one image: all passes through
# the denoiser, two a step, and the decoder, by torch's counter. SD 2.1: SD 1.5's counts at 768 pixels, which its U-Net
# shares but for the width of heads. SD 3.5: four times its count at 512 pixels, so at least this.
MODELS = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 512, 50, 7.5, 82.8),
    "sd21": ("stabilityai/stable-diffusion-2-1", 768, 50, 7.5, 220.6),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", 1024, 30, 5.0, 416.0),
    "pixart": ("PixArt-alpha/PixArt-Sigma-XL-2-512-MS", 512, 20, 4.5, 54.0),
    "sd35": ("stabilityai/stable-diffusion-3.5-medium", 1024, 28, 7.0, 488.0),
}
LONG_PROMPT = (
    "Write one image caption that contains the concept '{concept}' and describes in detail what can be seen in a scene"
    " around it: objects, colours, light, background. It must have 40 to 60 words. Reply with the caption alone."
)
CAPTIONS = {
    "class": ("engine=templates", "templates=('a photo of a {concept}.',)", "max_words=40"),
    "short": ("engine=vllm",),  # the paper's prompt
    "long": (
        "engine=vllm",
        f"prompt={LONG_PROMPT}",
        "min_words=30",
        "max_words=70",
        "max_new_tokens=256",
        "filters=refusal,concept,length",
    ),
}


def get_study(part: str = "all", data: str = "data", seeds: str = "1", pairs: str = "1M"):
    if part not in ("all", TABLES, GRID):
        raise ValueError(f"part: given {part!r}, allowed: all, {TABLES}, {GRID}")
    size = runpy.run_path(str(ROOT / "configs" / "cc12m.py"))["pairs"](pairs)
    cells: list[Cell] = []
    if part != GRID:
        cells += tables(data, int(seeds))
    if part != TABLES:
        cells += grid(data, size, int(seeds), with_real=part == GRID)
    return Study(
        "paper",
        "what are synthetic pairs worth, and which text-to-image model draws the best of them?",
        tuple(cells),
        curves=CURVES if part != GRID else (),
        claims=(*(CLAIMS if part != GRID else ()), *(grid_claims() if part != TABLES else ())),
        rates=rates(),
        notes=(
            "A `bound` is what nothing can exceed, not what was measured: hours on it are the least there can be.",
            "Test sets and evaluation are not counted.",
        ),
    )


# ---- Tables 1 and 2 --------------------------------------------------------------------------------------------------


def tables(data: str, seeds: int) -> list[Cell]:
    """Data of 30M pairs, and for each seed the runs of both tables."""
    flags = ("--config=configs/synthci_30m.py", "--workdir={cell}")
    asked = 500_000 * 120
    write = Work(writing("short"), asked, "captions", asked * CAPTION_BYTES)
    draw = Work(drawing("sd15"), 30 * MILLION, "images", 30 * MILLION * IMAGE_BYTES)
    made = (
        Step("gen", (*flags, "--stages=concepts,captions,balance"), write),
        Step("gen", (*flags, "--stages=images,finalize"), draw),
        Step("gen.audit", ("--workdir={cell}",)),
    )
    cells = [Cell("synthci", {}, made)]
    dataset = "{cells}/synthci/dataset/synthci_30m/1.0.0"
    for seed in range(seeds):
        for name, millions in REAL.items():
            sources = f"--config.data.sources=wds:{data}/{name}"
            run = trained(f"configs/{name}.py", (sources,), EPOCHS * millions, seed, data)
            factors = {"paper": f"clip_{name}", "source": "real", "size": round(millions * MILLION), "seed": seed}
            cells.append(Cell(f"{name}-{seed}", factors, run))
        for name, millions in SYNTHETIC.items():
            size = round(millions * MILLION)
            of = () if name == "30M" else (f"--config.data.part={size}",)
            run = trained(
                "configs/synthci_30m.py", (f"--config.data.path={dataset}", *of), EPOCHS * millions, seed, data
            )
            factors = {"paper": f"synthci_{name.lower()}", "source": "synthetic", "size": size, "seed": seed}
            cells.append(Cell(f"synthci_{name}-{seed}", factors, run, ("synthci",)))
        cells += [*finetuned(data, seed), mixed(data, dataset, seed)]
    return cells


def finetuned(data: str, seed: int) -> list[Cell]:
    """SynthCI-30M trained on with real pairs: table 2."""
    cells = []
    for name, size in FINETUNED.items():
        for epochs in (5, 10):
            start = f"synthci_30M-{seed}"
            flags = (f"--config.train.init_from={{cells}}/{start}", f"--config.data.sources=wds:{data}/cc12m")
            millions = float(size.removesuffix("M"))
            run = trained(f"configs/finetune_real.py:{size},epochs={epochs}", flags, epochs * millions, seed, data)
            factors = {"paper": f"finetuned_{epochs}ep_{name}", "source": "finetuned", "epochs": epochs}
            factors |= {"size": round(millions * MILLION), "seed": seed}
            cells.append(Cell(f"finetuned_{epochs}ep_{name}-{seed}", factors, run, (start,)))
    return cells


def mixed(data: str, dataset: str, seed: int) -> Cell:
    """Real and synthetic pairs together, from scratch."""
    sources = f"--config.data.sources=(('wds:{data}/cc12m',),('tfrecord:{dataset}',None,None,None,11_200_000))"
    factors = {"paper": "mixed_8_8m_real_11_2m_synthetic", "source": "mixed", "size": 20 * MILLION, "seed": seed}
    run = trained("configs/mixed.py", (sources,), EPOCHS * 20, seed, data)
    return Cell(f"mixed-{seed}", factors, run, ("synthci",))


def trained(config: str, flags: tuple[str, ...], millions: float, seed: int, data: str) -> tuple[Step, ...]:
    """Training on so many millions of pairs seen, and the paper's whole evaluation."""
    common = (f"--config={config}", "--workdir={cell}", f"--config.seed={seed}", *flags)
    checkpoints = default_config().train.keep * 3 * 4 * PARAMETERS
    return (
        Step("synthclip_jax.train", common, Work(TRAIN, millions * MILLION, "pairs", checkpoints)),
        Step("synthclip_jax.evaluate", (*common, "--suite=paper", f"--data={data}")),
    )


ALL_TASKS = "delta_mtl/clip_cc12m"  # against the paper's CC12M
REAL_88, SYNTHETIC_30 = {"source": "real", "size": 8_800_000}, {"source": "synthetic", "size": 30 * MILLION}
LITTLE = {"source": "finetuned", "size": 500_000, "epochs": 5}
CURVES = (Curve("synthetic", {"source": "synthetic"}, "mean/zeroshot"),)
CLAIMS = (
    Claim(
        "worth_less",
        "At equal size synthetic pairs are worth less than real ones (8.8M; the paper: -15.0%).",
        ALL_TASKS,
        better=REAL_88,
        worse={"source": "synthetic", "size": 8_800_000},
    ),
    Claim(
        "catches_up",
        "30M synthetic pairs are worth more than 8.8M real ones over all tasks (the paper: +0.2%).",
        ALL_TASKS,
        better=SYNTHETIC_30,
        worse=REAL_88,
    ),
    Claim(
        "retrieval",
        "30M synthetic pairs are worth more than 8.8M real ones in image retrieval (the paper: +2.8 points).",
        "mean/image_retrieval",
        better=SYNTHETIC_30,
        worse=REAL_88,
    ),
    Claim(
        "little_real_lifts",
        "0.5M real pairs on top lift SynthCI-30M (the paper: from +0.2% to +4.4%).",
        ALL_TASKS,
        better=LITTLE,
        worse=SYNTHETIC_30,
    ),
    Claim(
        "above_real",
        "With 0.5M real pairs on top it is better than 8.8M real ones alone (the paper: +4.4%).",
        ALL_TASKS,
        better=LITTLE,
        worse=REAL_88,
    ),
)


# ---- Text to image ---------------------------------------------------------------------------------------------------


def grid(data: str, pairs: int, seeds: int, with_real: bool) -> list[Cell]:
    """Captions of each length once; of them, a version of the images by each model and guidance; a model on each.

    Args:
      with_real: the model trained on real pairs, which embeds images for coverage and density, is a cell here.
    """
    cells = []
    if with_real:
        run = trained("configs/cc12m.py", (f"--config.data.sources=wds:{data}/cc12m",), EPOCHS * 8.8, 0, data)
        cells.append(Cell("cc12m-0", {"source": "real"}, run))
    for length in CAPTIONS:
        cells.append(captions(length, pairs))
        for version, (model, guidance) in enumerate(drawn(), 1):
            cells += images(data, pairs, seeds, length, model, guidance, f"1.{version}.0")
    return cells


def drawn() -> list[tuple[str, float]]:
    """Every model with each of its two guidance scales."""
    return [(name, guidance) for name, model in MODELS.items() for guidance in (2.0, model[3])]


def of_length(length: str, pairs: int) -> tuple[str, ...]:
    """The flags of generation with captions of one length, the same in every command."""
    return (
        "--config=configs/synthci_3m.py",
        f"--workdir={{cells}}/captions_{length}",
        *(f"--config.gen.captions.{value}" for value in CAPTIONS[length]),
        f"--config.gen.captions.per_concept={asked(pairs)}",
        f"--config.gen.balance.target_size={pairs}",
    )


def asked(pairs: int) -> int:
    """Captions for each of 500,000 concepts: twice as many as are kept."""
    return max(1, -(-2 * pairs // 500_000))


def captions(length: str, pairs: int) -> Cell:
    """Captions of one length, balanced."""
    count = 500_000 * asked(pairs)
    work = Work(writing(length), count, "captions", count * CAPTION_BYTES) if length in TOKENS else None
    step = Step("gen", (*of_length(length, pairs), "--stages=concepts,captions,balance"), work)
    return Cell(f"captions_{length}", {"captions": length}, (step,))


def images(data: str, pairs: int, seeds: int, length: str, model: str, guidance: float, version: str) -> list[Cell]:
    """Images by one model with one guidance scale, what they cover, and a CLIP model on them for each seed."""
    hub, pixels, steps, _, _ = MODELS[model]
    draws = (
        *(f"model={hub}", f"generate_size={pixels}", f"steps={steps}", f"guidance={guidance:g}"),
        *(() if model == "sd15" else ("scheduler=model",)),
    )
    flags = (*of_length(length, pairs), *(f"--config.gen.images.{value}" for value in draws))
    draw = Work(drawing(model), pairs, "images", pairs * IMAGE_BYTES)
    name, workdir = f"{model}-g{guidance:g}-{length}", f"{{cells}}/captions_{length}"
    new = (f"--config.gen.version={version}", "--new-version", "--stages=images,finalize")
    beside = (f"--reference={data}/reference", "--checkpoint={cells}/cc12m-0", "--numbers={cell}/measured.json")
    made = (
        Step("gen", (*flags, *new), draw),
        Step("gen.audit", (f"--workdir={workdir}", f"--version={version}", *beside)),
    )
    factors = {"model": model, "guidance": guidance, "own_guidance": int(guidance != 2.0), "captions": length}
    cells = [Cell(f"images-{name}", factors, made, (f"captions_{length}", "cc12m-0"))]
    dataset = f"--config.data.path={workdir}/dataset/synthci_3m/{version}"
    for seed in range(seeds):
        run = trained("configs/synthci_3m.py", (dataset,), EPOCHS * pairs / MILLION, seed, data)
        cells.append(Cell(f"{name}-{seed}", {**factors, "seed": seed}, run, (f"images-{name}",)))
    return cells


def grid_claims() -> tuple[Claim, ...]:
    """What classifiers trained on images of 13 models showed (arXiv 2602.19946), asked of CLIP."""
    found = [
        Claim(
            f"sd15_above_{model}",
            f"With class names as captions and guidance 2, SD 1.5 draws better training data than {model}.",
            "mean/zeroshot",
            better={"model": "sd15", "captions": "class", "own_guidance": 0},
            worse={"model": model, "captions": "class", "own_guidance": 0},
        )
        for model in MODELS
        if model != "sd15"
    ]
    longer = Claim(
        "long_captions",
        "Captions of 40 to 60 words are better than class names, for every model and guidance.",
        "mean/zeroshot",
        better={"captions": "long"},
        worse={"captions": "class"},
        pair=("model", "own_guidance"),
    )
    low = Claim(
        "low_guidance",
        "Guidance 2 is better than the pipeline's own.",
        "mean/zeroshot",
        better={"own_guidance": 0},
        worse={"own_guidance": 1},
        pair=("model", "captions"),
    )
    return (*found, longer, low)


# ---- What chips do ---------------------------------------------------------------------------------------------------


def writing(length: str) -> str:
    return f"write {length} captions"


def drawing(model: str) -> str:
    _, pixels, steps, _, _ = MODELS[model]
    return f"draw {model}, {pixels} px, {steps} guided steps"


def rates() -> dict[str, dict[str, Rate]]:
    """Of one H100: measured, or scaled from what was measured. Of one v5e chip: bounds. Captions: published."""
    train = json.loads((ROOT / CARD / "train_step.json").read_text())["contenders"]["ours"]
    draw = json.loads((ROOT / CARD / "draw.json").read_text())
    bound = float(re.search(r"([\d,]+) pairs/s", (ROOT / "docs/plans/v5e_4x4.txt").read_text())[1].replace(",", ""))
    measured = f"measured on {train['device']}, {CARD}/train_step.json"
    h100 = {TRAIN: Rate(train["samples_per_second"], measured)}
    v5e = {TRAIN: Rate(bound / 16, "bound: docs/plans/v5e_4x4.txt")}
    teraflops, peak = draw["tflop_per_second"]["diffusers"], CHIPS["v5e"].peak_flops / 1e12
    for name, model in MODELS.items():
        source = f"scaled: {teraflops:.0f} TFLOP/s measured with SD 1.5 on {draw['device']}, {CARD}/draw.json"
        h100[drawing(name)] = Rate(teraflops / model[4], source)
        v5e[drawing(name)] = Rate(peak / model[4], f"bound: the chip's peak of {peak:.0f} TFLOP/s")
    for length, tokens in TOKENS.items():
        source = f"published: 1,591 tokens/s of Mistral-7B by vLLM 0.5.4 on an A100, {tokens} tokens a caption"
        h100[writing(length)] = Rate(1591 / tokens, source)
    return {"H100": h100, "v5e": v5e}
