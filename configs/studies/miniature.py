"""The paper in miniature, on real photographs: what are synthetic pairs worth, and do a few real ones on top help?

    python -m synthclip_jax.study --study=configs/studies/miniature.py --workdir=W --dry-run
    python -m synthclip_jax.study --study=configs/studies/miniature.py --workdir=W            or: make study-miniature
    python -m synthclip_jax.study --study=configs/studies/miniature.py:split=validation --workdir=V

Real pairs are scenes of photographs, synthetic ones are drawn by a text-to-image model that was trained on scenes of
other photographs; captions of both are of one grammar. All runs see as many pairs, so that small datasets are seen more
often; beside them each pair 16 times, as the paper has it (40 times). 16,000 are 256,000 pairs seen either way.
Finetuning goes on from the model on 64,000 synthetic pairs with 1%, 5% and 20% of the 16,000 real ones for a tenth of
the pairs: with a quarter of the learning rate, as first written, and with a twentieth, which was chosen on validation
photographs after the first had done harm. A part of the data is drawn by the run's seed, as are weights and order; real
scenes and synthetic images are made once. `split=validation` is what settings are chosen on; what is reported is of the
official test photographs. Claims are those of the paper, written down before; `later` has what was asked afterwards.
"""

from collections.abc import Iterator

from synthclip_jax.evals.paper_tables import load
from synthclip_jax.study import Beside, Cell, Claim, Curve, Step, Study, Trial, Work

CONFIG = "configs/miniature.py"
SEEN, EPOCHS, TUNED = 256_000, 16, 25_600  # pairs seen; passes with constant epochs; pairs seen in finetuning
REAL = (160, 800, 3200, 16_000)
SYNTHETIC = (800, 3200, 16_000, 64_000)
LITTLE = {160: "1%", 800: "5%", 3200: "20%"}  # of all real pairs
TUNINGS = {"finetuned": ("2.5e-4", "2.5e-6"), "gently finetuned": ("5e-5", "5e-7")}  # learning rate, and at the end
MIXED = (3200,)
FLAX, MAY_LOSE = 3200, 0.03  # synthetic pairs that the JAX engine draws; what they may lose beside the other's
CONCEPTS = 90
BY_FLAX = "--config.gen.images.engine=flax"
TRAIN, DRAW, SCENES = "train miniature", "draw miniature", "scenes"
IMAGE_BYTES, RUN_BYTES = 1300, 25_000_000  # of a record of the dataset; of a run with its checkpoint
ITEM, COLOUR, RETRIEVAL = "zeroshot/item/acc1", "zeroshot/colour_item/acc1", "retrieval/retrieval/image_r@5"
SHOWN = {
    ITEM: "item, 10 classes",
    COLOUR: "colour and item, 80 classes",
    RETRIEVAL: "image retrieval, recall@5",
}
SAMPLES, EQUAL, BOTH = "samples", "epochs", "both"  # what is constant; of 16,000 pairs it is the same run


# ---- Cells, which other studies of this world share ------------------------------------------------------------------


def world(real: int = 16_000, test: int = 10_000, validation: int = 4000, retrieval: int = 1000) -> Cell:
    """Real scenes and test sets."""
    sizes = {"real": real, "test": test, "validation": validation, "retrieval": retrieval}
    flags = ("--out={cell}", *(f"--{name}={size}" for name, size in sizes.items()))
    scenes = real + 2 * (test + validation + retrieval)
    return Cell("world", {}, (Step("gen.miniature", flags, Work(SCENES, scenes, "scenes", scenes * IMAGE_BYTES)),))


def drawn(name: str, pairs: int, captions: str = "all", flags: tuple[str, ...] = (), pool: int = 0) -> Cell:
    """Synthetic pairs, at least so many, in a dataset of their own.

    Args:
      flags: more of them.
      pool: captions that are written, if others than are drawn.
    """
    asked = -(-(pool or pairs) // CONCEPTS)
    common = (
        f"--config={CONFIG}:captions={captions}",
        "--workdir={cell}",
        "--config.gen.concepts.lists=('{cells}/world/concepts.txt',)",
        f"--config.gen.captions.per_concept={asked}",
        *flags,
    )
    short = (
        Trial((f"--config.gen.captions.per_concept={count}", "--config.gen.balance.t=1e9"), count * CONCEPTS)
        for count in (4, 12)
    )
    work = Work(DRAW, pairs, "images", pairs * IMAGE_BYTES)
    return Cell(name, {}, (Step("gen", common, work, () if pool else tuple(short)),), ("world",))


def real() -> str:
    """Where the real pairs are."""
    return "wds:{cells}/world/real"


def synthetic(cell: str = "synthetic") -> str:
    """Where the synthetic pairs of a cell are."""
    return f"tfrecord:{{cells}}/{cell}/dataset/miniature/1.0.0"


def trained(
    sources: str,
    size: int,
    seed: int,
    seen: int = SEEN,
    flags: tuple[str, ...] = (),
    split: str = "test",
) -> tuple[Step, ...]:
    """Training on so many pairs until so many are seen, and evaluation.

    Args:
      sources: value of `data.sources`.
      flags: more of them.
    """
    sets = ",".join(f"'{name}=wds:{{cells}}/world/{split}/{name}'" for name in ("item", "colour_item", "retrieval"))
    common = (
        f"--config={CONFIG}:{size},seen={seen}",
        "--workdir={cell}",
        f"--config.seed={seed}",
        f"--config.data.sources={sources}",
        f"--config.eval.datasets=({sets})",
        *flags,
    )
    # The time that a run takes to start, compile and evaluate is in both.
    trials = tuple(Trial((f"--config={CONFIG}:{size},seen={pairs}",), pairs) for pairs in (6400, 25_600))
    return (
        Step("synthclip_jax.train", common, Work(TRAIN, seen, "pairs", RUN_BYTES), trials),
        Step("synthclip_jax.evaluate", common),
    )


def run(source: str, size: int, seed: int, constant: str = SAMPLES, split: str = "test") -> Cell:
    """A run on real or on synthetic pairs alone."""
    seen = EPOCHS * size if constant == EQUAL else SEEN
    steps = trained(real() if source == "real" else synthetic(), size, seed, seen, split=split)
    name = f"{source}-{size}-{seed}" if constant != EQUAL else f"{source}-{size}-{EPOCHS}ep-{seed}"
    factors = {"source": source, "size": size, "constant": BOTH if size * EPOCHS == SEEN else constant, "seed": seed}
    return Cell(name, factors, steps, ("world",) if source == "real" else ("world", "synthetic"))


# ---- The study -------------------------------------------------------------------------------------------------------


def get_study(seeds: str = "3", split: str = "test"):
    if split not in ("test", "validation"):
        raise ValueError(f"split: given {split!r}, allowed: test, validation")
    cells = [world(), drawn("synthetic", max(SYNTHETIC)), drawn("synthetic-flax", FLAX, flags=(BY_FLAX,))]
    for seed in range(int(seeds)):
        for source, sizes in (("real", REAL), ("synthetic", SYNTHETIC)):
            for constant in (SAMPLES, EQUAL):
                of = [size for size in sizes if constant == SAMPLES or size * EPOCHS < SEEN]
                cells += [run(source, size, seed, constant, split) for size in of]
        cells += [finetuned(size, seed, split, "finetuned") for size in LITTLE]
        cells += [mixed(size, seed, split) for size in MIXED]
    cells += [by_flax(seed, split) for seed in range(int(seeds))]
    cells += [finetuned(size, seed, split, "gently finetuned") for seed in range(int(seeds)) for size in LITTLE]
    return Study(
        "miniature",
        "what are synthetic pairs worth beside real photographs, and do a few real ones on top lift them?",
        tuple(cells),
        curves(),
        claims(),
        SHOWN,
        paper(),
        notes=("The generator is not trained here: it is part of the package, and its model card says how it was.",),
    )


def finetuned(size: int, seed: int, split: str, tuning: str) -> Cell:
    """The model on all synthetic pairs goes on with a few real ones."""
    start = f"synthetic-{max(SYNTHETIC)}-{seed}"
    flags = (
        f"--config.train.init_from={{cells}}/{start}",
        f"--config.train.learning_rate={TUNINGS[tuning][0]}",
        f"--config.train.lr_end={TUNINGS[tuning][1]}",
    )
    steps = trained(real(), size, seed, TUNED, flags, split)
    factors = {"source": tuning, "size": size, "constant": SAMPLES, "seed": seed}
    return Cell(f"{tuning.replace(' ', '-')}-{size}-{seed}", factors, steps, ("world", start))


def mixed(size: int, seed: int, split: str) -> Cell:
    """All synthetic pairs and some real ones as one dataset, from scratch."""
    pairs = max(SYNTHETIC)
    sources = f"(('{real()}',None,None,None,{size}),('{synthetic()}',None,None,None,{pairs}))"
    steps = trained(sources, size + pairs, seed, flags=("--config.data.part=1.0",), split=split)
    factors = {"source": "mixed", "size": size, "constant": SAMPLES, "seed": seed}
    return Cell(f"mixed-{size}-{seed}", factors, steps, ("world", "synthetic"))


def by_flax(seed: int, split: str) -> Cell:
    """A run on synthetic pairs that the JAX engine drew."""
    steps = trained(synthetic("synthetic-flax"), FLAX, seed, split=split)
    factors = {"source": "flax", "size": FLAX, "constant": SAMPLES, "seed": seed}
    return Cell(f"flax-{FLAX}-{seed}", factors, steps, ("world", "synthetic-flax"))


def curves() -> tuple[Curve, ...]:
    """Item accuracy over the number of pairs; of finetuned and mixed runs over the real ones among them."""
    seen = {"constant": (SAMPLES, BOTH)}
    plot = f"In miniature: item accuracy, {SEEN:,} pairs seen"
    other = f"In miniature: item accuracy, each pair seen {EPOCHS} times"
    return (
        Curve("real", {"source": "real", **seen}, ITEM, plot=plot),
        Curve("synthetic", {"source": "synthetic", **seen}, ITEM, compare="real", plot=plot),
        Curve("finetuned", {"source": "gently finetuned"}, ITEM, title="synthetic, then real", plot=plot, fitted=False),
        Curve("mixed", {"source": "mixed"}, ITEM, title="mixed", plot=plot, fitted=False),
        Curve("real_epochs", {"source": "real", "constant": (EQUAL, BOTH)}, ITEM, title="real", plot=other),
        Curve(
            "synthetic_epochs",
            {"source": "synthetic", "constant": (EQUAL, BOTH)},
            ITEM,
            compare="real_epochs",
            title="synthetic",
            plot=other,
        ),
    )


def alone(source: str, size: int) -> dict:
    """Runs on pairs of one source, which see as many as all others."""
    return {"source": source, "size": size, "constant": (SAMPLES, BOTH)}


ALL_SYNTHETIC = alone("synthetic", max(SYNTHETIC))


def claims() -> tuple[Claim, ...]:
    """The paper's three, and what stands beside them."""
    most = max(SYNTHETIC)
    found = []
    for name, constant, words in (
        ("worth_less", SAMPLES, "at as many pairs seen"),
        ("worth_less_epochs", EQUAL, f"each seen {EPOCHS} times"),
    ):
        sides = ({"source": source, "constant": (constant, BOTH)} for source in ("real", "synthetic"))
        statement = f"At equal size synthetic pairs are worth less than real ones, {words}."
        found.append(Claim(name, statement, ITEM, *sides, pair=("size",)))
    for size in REAL:
        statement = f"{most:,} synthetic pairs are worth more than {size:,} real ones."
        found.append(Claim(f"catches_up_{size}", statement, ITEM, ALL_SYNTHETIC, alone("real", size)))
    found += on_top("finetuned", "little_real", "on top")
    found.append(
        Claim(
            "above_all_real",
            "Synthetic pairs with 20% of the real ones on top are worth more than all real ones.",
            ITEM,
            {"source": "finetuned", "size": 3200},
            {"source": "real", "size": 16_000},
        )
    )
    for size in MIXED:
        statement = f"{most:,} synthetic pairs beside {size:,} real ones are worth more than these real ones alone."
        mix = {"source": "mixed", "size": size}
        found.append(Claim(f"mixed_{size}", statement, ITEM, mix, alone("real", size)))
    found.append(
        Claim(
            "flax_as_good",
            f"Images drawn in JAX lose less than {100 * MAY_LOSE:.0f} points beside as many by diffusers.",
            ITEM,
            {"source": "flax"},
            alone("synthetic", FLAX),
            threshold=-MAY_LOSE,
        )
    )
    return (*found, *later())


def later() -> Iterator[Claim]:
    """Added when the first numbers on test photographs were known, to see where they come from."""
    for metric, words in ((ITEM, "item"), (COLOUR, "colour and item"), (RETRIEVAL, "retrieval")):
        for size in SYNTHETIC[:-1]:
            sides = (alone(source, size) for source in ("real", "synthetic"))
            name = f"worth_less_{size}_{words.replace(' ', '_')}"
            yield Claim(
                name, f"Added later: {size:,} synthetic pairs are worth less than real ones ({words}).", metric, *sides
            )
    yield from on_top("gently finetuned", "gently", "gently on top", "Added later: ")
    for source, name, words in (
        ("finetuned", "little_real", "on top"),
        ("gently finetuned", "gently", "gently on top"),
    ):
        for size, share in LITTLE.items():
            lifts = f"Added later: {size:,} real pairs ({share}) {words} lift the model (colour and item)."
            tuned = {"source": source, "size": size}
            yield Claim(f"{name}_lifts_{size}_colour", lifts, COLOUR, tuned, ALL_SYNTHETIC)


def on_top(source: str, name: str, words: str, prefix: str = "") -> Iterator[Claim]:
    """A few real pairs on top of all synthetic ones, beside the model on these and on the real ones alone."""
    most = f"{max(SYNTHETIC):,}"
    for size, share in LITTLE.items():
        tuned = {"source": source, "size": size}
        lifts = f"{prefix}{size:,} real pairs ({share}) {words} lift the model on {most} synthetic ones."
        yield Claim(f"{name}_lifts_{size}", lifts, ITEM, tuned, ALL_SYNTHETIC)
        above = (
            f"{prefix}{size:,} real pairs ({share}) {words} of {most} synthetic ones are worth more than these alone."
        )
        yield Claim(f"above_{name}_{size}", above, ITEM, tuned, alone("real", size))


def paper() -> Beside:
    """The paper's zero-shot accuracy over the number of pairs."""
    table, tuned = load("table1")["models"], load("real_data")["models"]

    def share(model: dict) -> float:
        return model["averages"]["zeroshot"] / 100

    millions = {"3m": 3.0, "8_8m": 8.8, "10m": 10.0, "20m": 20.0, "30m": 30.0}
    series = {
        "real": [(3e6, share(table["clip_cc3m"])), (8.8e6, share(table["clip_cc12m"]))],
        "synthetic": [(1e6 * size, share(table[f"synthci_{name}"])) for name, size in millions.items()],
        "30M synthetic, then real": [
            (1e6 * size, share(tuned[f"finetuned_5ep_{name}"]))
            for name, size in (("0_5m", 0.5), ("2m", 2.0), ("8_8m", 8.8))
        ],
    }
    source = "SynthCLIP (arXiv 2402.01832), tables 1 and 2; one run each"
    return Beside("The paper: ImageNet zero-shot", "Top-1 accuracy, each pair seen 40 times", series, source)
