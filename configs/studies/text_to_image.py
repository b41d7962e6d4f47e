"""Which images make the best training data? One thing of the text-to-image model is varied at a time.

    python -m synthclip_jax.study --study=configs/studies/text_to_image.py --workdir=W [--dry-run]

Guidance of 1, 2, 4 and 7.5; 3 and 12 steps; the model early and late in its training; captions short, medium, long and
of all lengths, and by the embedded language model; drawn by diffusers, and by our engine in JAX. Zero-shot accuracy of
CLIP on each stands beside density and coverage of its images (Naeem et al., 2020) next to real scenes of photographs
that CLIP has not seen, by the embeddings of a CLIP model trained on real pairs. Runs see a quarter of the pairs that
those of `configs/studies/miniature.py` see; in its workdir the model that embeds is the one that is there.
`early=FOLDER`: pipeline of the model early in its training; without it that arm is left out. `vary=steps+guidance`:
these alone. With real models this question is `configs/studies/paper.py:text_to_image`.
"""

import pathlib
import runpy

from synthclip_jax.study import Cell, Claim, Scatter, Step, Study

_miniature = runpy.run_path(str(pathlib.Path(__file__).with_name("miniature.py")))
ITEM = _miniature["ITEM"]
PAIRS, SEEN = 3200, 64_000
GUIDANCE, FEW, CAPTIONS = (1.0, 4.0, 7.5), 3, ("short", "medium", "long")
WRITTEN = 5400  # captions by the language model, so that more than PAIRS are kept
USUAL = {"model": "late", "guidance": 2.0, "steps": 12, "captions": "all", "engine": "diffusers"}
DENSITY, COVERAGE, DIVERSITY = "data/density", "data/coverage", "data/diversity"


def get_study(seeds: str = "3", early: str = "", vary: str = "steps+guidance+captions+engine+model+writer"):
    arms = {
        "steps": [{"steps": FEW}],
        "guidance": [{"guidance": guidance} for guidance in GUIDANCE],
        "captions": [{"captions": captions} for captions in CAPTIONS],
        "engine": [{"engine": "flax"}],
        "model": [{"model": "early"}] if early else [],
        "writer": [{"captions": "llm"}],  # last: writing them takes longer than all else
    }
    if unknown := set(vary.split("+")) - arms.keys():
        raise ValueError(f"vary: given {min(unknown)!r}, allowed, joined by +: {', '.join(arms)}")
    kinds = [USUAL, *(USUAL | arm for name in arms if name in vary.split("+") for arm in arms[name])]
    embeds = _miniature["run"]("real", 16_000, 0)
    cells = [_miniature["world"](), embeds]
    for kind in kinds:
        cells += _arm(kind, int(seeds), early, embeds.name)
    return Study(
        "text_to_image",
        "which images make the best training data, and do density and coverage foretell it?",
        tuple(cells),
        claims=tuple(claim for claim in _claims() if claim.worse in kinds and claim.better in kinds),
        shown={
            ITEM: "item, 10 classes",
            _miniature["COLOUR"]: "colour and item, 80 classes",
            COVERAGE: "coverage",
            DENSITY: "density",
            DIVERSITY: "diversity",
        },
        scatters=(
            Scatter("Accuracy over coverage", COVERAGE, ITEM),
            Scatter("Accuracy over density", DENSITY, ITEM),
        ),
    )


def _name(kind: dict) -> str:
    return f"{kind['model']}-g{kind['guidance']:g}-s{kind['steps']}-{kind['captions']}-{kind['engine']}"


def _arm(kind: dict, seeds: int, early: str, embeds: str) -> list[Cell]:
    """Images of one kind, what they cover, and a model on them for each seed."""
    name = _name(kind)
    flags = (
        f"--config.gen.images.guidance={kind['guidance']:g}",
        f"--config.gen.images.steps={kind['steps']}",
        f"--config.gen.images.engine={kind['engine']}",
        *((f"--config.gen.images.model={early}",) if kind["model"] == "early" else ()),
    )
    drawn = _miniature["drawn"](
        f"data-{name}", WRITTEN if kind["captions"] == "llm" else PAIRS, kind["captions"], flags
    )
    # Its scenes have one to three items, as the drawn ones have.
    beside = ("--reference=wds:{cells}/world/validation/retrieval", f"--checkpoint={{cells}}/{embeds}")
    audit = Step("gen.audit", ("--workdir={cell}", *beside))
    cells = [Cell(drawn.name, kind, (*drawn.steps, audit), ("world", embeds))]
    for seed in range(seeds):
        steps = _miniature["trained"](_miniature["synthetic"](drawn.name), PAIRS, seed, SEEN)
        cells.append(Cell(f"{name}-{seed}", {**kind, "seed": seed}, steps, ("world", drawn.name)))
    return cells


def _claims():
    for guidance in GUIDANCE:
        yield Claim(
            f"guidance_2_above_{guidance:g}",
            f"Guidance 2 draws better training data than {guidance:g}.",
            ITEM,
            USUAL,
            USUAL | {"guidance": guidance},
        )
    yield Claim(
        "more_steps",
        f"12 steps draw better training data than {FEW}.",
        ITEM,
        USUAL,
        USUAL | {"steps": FEW},
    )
    yield Claim(
        "long_captions",
        "Long captions make better training data than short ones.",
        ITEM,
        USUAL | {"captions": "long"},
        USUAL | {"captions": "short"},
    )
    yield Claim(
        "flax_above_diffusers",
        "Images drawn in JAX make better training data than those by diffusers (not shown: they are as good).",
        ITEM,
        USUAL | {"engine": "flax"},
        USUAL,
    )
    yield Claim(
        "trained_longer",
        "The model late in its training draws better training data than early.",
        ITEM,
        USUAL,
        USUAL | {"model": "early"},
    )
