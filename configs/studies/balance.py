"""What is balancing worth, if captions name few concepts very often?

    python -m synthclip_jax.study --study=configs/studies/balance.py --workdir=W [--dry-run]

The captions are skewed: each names a second thing, the first of 90 some ninety times as often as the last. Four ways to
choose what is drawn: `balanced` (MetaCLIP's), `random` (as many, without looking), `none` (all of them), and
`templates`: no skewed captions, each concept as often as any other. The models see as many pairs. Beside all 80 classes
stand those of things that are named most and least often.
"""

import pathlib
import runpy

from synthclip_jax.study import Cell, Claim, Study

_HERE = pathlib.Path(__file__)
_miniature = runpy.run_path(str(_HERE.with_name("miniature.py")))
_config = runpy.run_path(str(_HERE.parents[1] / "miniature.py"))
POOL, KEPT = 32_400, 8000  # captions that are written, and that balancing is to keep about
SIZE = 7500  # of them that a model trains on: the least that every way has
EDGE = 30  # concepts at either end
RECALL = "zeroshot/colour_item/mean_per_class_recall"
OFTEN, SELDOM = "zeroshot/colour_item/acc1_of_often", "zeroshot/colour_item/acc1_of_seldom"
_SOLVED = ("--config.gen.balance.t=0", f"--config.gen.balance.target_size={KEPT}")
WAYS = {
    "balanced": ("skewed", KEPT, POOL, _SOLVED),
    "random": ("skewed", KEPT, POOL, (*_SOLVED, "--config.gen.balance.method=random")),
    "none": ("skewed", POOL, 0, ()),
    "templates": ("all", KEPT, 0, ()),
}


def get_study(seeds: str = "3"):
    cells = [_miniature["world"]()]
    for way, (captions, pairs, pool, flags) in WAYS.items():
        cells.append(_miniature["drawn"](f"data-{way}", pairs, captions, flags, pool))
    for seed in range(int(seeds)):
        for way, (_, pairs, _, _) in WAYS.items():
            size = pairs if way == "none" else SIZE
            steps = _miniature["trained"](_miniature["synthetic"](f"data-{way}"), size, seed)
            factors = {"way": way, "pairs": size, "seed": seed}
            cells.append(Cell(f"{way}-{seed}", factors, steps, ("world", f"data-{way}"), {"colour_item": ends()}))
    return Study(
        "balance",
        "what is balancing worth where captions name few concepts very often?",
        tuple(cells),
        claims=tuple(
            Claim(f"{name}_{short}", statement + words, metric, {"way": "balanced"}, {"way": other})
            for other, name, statement in (
                ("random", "above_random", "Balanced captions are better than as many chosen at random"),
                ("none", "above_none", "Balanced captions are better than four times as many that are not balanced"),
                ("templates", "above_templates", "Balanced captions are better than templates without a skew"),
            )
            for metric, short, words in (
                (RECALL, "all", ", over all classes."),
                (SELDOM, "seldom", ", on what captions name seldom."),
            )
        ),
        shown={
            RECALL: "80 classes, mean of each",
            OFTEN: "classes named often",
            SELDOM: "classes named seldom",
            _miniature["ITEM"]: "item, 10 classes",
        },
    )


def ends() -> dict[str, tuple[str, ...]]:
    """Classes that skewed captions name most, and least often."""
    order, classes = _config["skewed_order"](), _config["CONCEPTS"][len(_config["ITEMS"]) :]
    often, seldom = (tuple(name for name in part if name in classes) for part in (order[:EDGE], order[-EDGE:]))
    return {"often": often, "seldom": seldom}
