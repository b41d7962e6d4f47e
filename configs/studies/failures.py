"""Do synthetic and real pairs fail in other ways, where both are as good?

    python -m synthclip_jax.study --study=configs/studies/failures.py --workdir=W [--dry-run]
    python -m synthclip_jax.study --study=configs/studies/failures.py:real=3200,synthetic=3200 --workdir=W

A model on many synthetic pairs beside one on so few real ones that both are as accurate (`real=`: the number that the
miniature study finds to be worth as much; whether they are equal is the first claim). Compared are each class, how sure
they are of what they say, and corrupted images. For each seed a page by `compare_runs` shows the images on which they
disagree and what each confuses. In the workdir of `configs/studies/miniature.py` the models are those that are there.
"""

import pathlib
import runpy

from synthclip_jax.study import Cell, Claim, Step, Study

_HERE = pathlib.Path(__file__)
_miniature = runpy.run_path(str(_HERE.with_name("miniature.py")))
ITEMS = runpy.run_path(str(_HERE.parents[1] / "miniature.py"))["ITEMS"]
ITEM = _miniature["ITEM"]
ERROR, CORRUPTED, CORRUPTED_ERROR = "zeroshot/item/ece", "corruptions/item/acc1", "corruptions/item/ece"
FAULTS = ("noise", "blur", "weather", "digital")
IMAGES, SEVERITY = 300, 3  # that are corrupted, in each way, and how much of 5


def get_study(seeds: str = "3", real: str = "16000", synthetic: str = "64000"):
    sizes = {"real": int(real), "synthetic": int(synthetic)}
    cells = [_miniature["world"](), _miniature["drawn"]("synthetic", max(sizes["synthetic"], *_miniature["SYNTHETIC"]))]
    classes = {"item": {name.replace(" ", "_"): (name,) for name in ITEMS}}
    items = "--config.eval.datasets=('item=wds:{cells}/world/test/item',)"  # a test set alone: corrupting takes minutes
    flags = (
        f"--config.eval.corruptions.images={IMAGES}",
        f"--config.eval.corruptions.severities=({SEVERITY},)",
        items,
        "--suite=corruptions",
    )
    for seed in range(int(seeds)):
        runs = [_miniature["run"](source, size, seed) for source, size in sizes.items()]
        names = tuple(run.name for run in runs)
        cells += runs
        for run in runs:
            more = run.steps[-1].replaced("{cell}", f"{{cells}}/{run.name}", flags)
            factors = {"model": run.factors["source"], "seed": seed}
            cells.append(Cell(f"{run.name}-corrupted", factors, (more,), (run.name,), classes, run.name))
        both = (*(f"{{cells}}/{name}" for name in names), "--out={cell}/compare.html")
        cells.append(Cell(f"compare-{seed}", {"seed": seed}, (Step("synthclip_jax.compare_runs", both),), names))
    return Study(
        "failures",
        "do models on synthetic and on real pairs fail in other ways where they are as accurate?",
        tuple(cells),
        claims=tuple(_claims()),
        shown={
            ITEM: "item, 10 classes",
            ERROR: "calibration error",
            CORRUPTED: "corrupted",
            **{f"corruptions/item/{fault}": fault for fault in FAULTS},
            CORRUPTED_ERROR: "calibration error, corrupted",
            **{_accuracy(name): name for name in ITEMS},
        },
    )


def _claims():
    sides = {"model": "real"}, {"model": "synthetic"}
    yield Claim("as_accurate", "The real pairs are more accurate (not shown: they are equal).", ITEM, *sides)
    yield Claim(
        "calibration",
        "The model on synthetic pairs is further from being as sure as it is right.",
        ERROR,
        *reversed(sides),
    )
    yield Claim("corrupted", "The model on real pairs bears corrupted images better.", CORRUPTED, *sides)
    for fault in FAULTS:
        statement = f"The model on real pairs bears {fault} faults better."
        yield Claim(f"corrupted_{fault}", statement, f"corruptions/item/{fault}", *sides)
    for name in ITEMS:
        statement = f"The model on real pairs is better at: {name}."
        yield Claim(f"class_{name.replace(' ', '_')}", statement, _accuracy(name), *sides)


def _accuracy(item: str) -> str:
    return f"zeroshot/item/acc1_of_{item.replace(' ', '_')}"
