"""The miniature study in minutes: two sizes, one seed, a smaller model, few pairs seen. It shows that all of it works.

    python -m synthclip_jax.study --study=configs/studies/smoke.py --workdir=W            or: make study-smoke

Every kind of cell of `miniature` is there, so every command and every page: real and synthetic pairs, finetuned, mixed.
With one seed no claim can be shown.
"""

import dataclasses
import pathlib
import runpy

from synthclip_jax.study import Cell, Claim, Curve, Study

_miniature = runpy.run_path(str(pathlib.Path(__file__).with_name("miniature.py")))
SIZES, SEEN, TUNED = (180, 360), 3840, 1280
SMALL = (
    "--config.model.vision.layers=2",
    "--config.model.text.layers=1",
    "--config.gen.images.steps=4",
)


def get_study(model: str = "miniature"):
    """`model`: of the images, such as one that is still in training."""
    ours = _miniature
    cells = [ours["world"](real=400, test=400, validation=100, retrieval=100)]
    cells += [ours["drawn"]("synthetic", max(SIZES), flags=(SMALL[-1], f"--config.gen.images.model={model}"))]
    for size in SIZES:
        for source in ("real", "synthetic"):
            sources = ours["real"]() if source == "real" else ours["synthetic"]()
            cells.append(_run(source, size, ours["trained"](sources, size, 0, SEEN, SMALL)))
    start = f"synthetic-{max(SIZES)}"
    tuned = (*SMALL, f"--config.train.init_from={{cells}}/{start}", "--config.train.learning_rate=2.5e-4")
    cells.append(_run("finetuned", 180, ours["trained"](ours["real"](), 180, 0, TUNED, tuned), start))
    both = f"(('{ours['real']()}',None,None,None,180),('{ours['synthetic']()}',None,None,None,360))"
    cells.append(_run("mixed", 180, ours["trained"](both, 540, 0, SEEN, (*SMALL, "--config.data.part=1.0"))))
    item = ours["ITEM"]
    return Study(
        "smoke",
        "does the study of real and synthetic pairs run from its first command to its last page?",
        tuple(cells),
        tuple(
            Curve(source, {"source": source}, item, fitted=False)
            for source in ("real", "synthetic", "finetuned", "mixed")
        ),
        (
            Claim(
                "worth_less",
                "At equal size synthetic pairs are worth less than real ones.",
                item,
                {"source": "real"},
                {"source": "synthetic"},
                ("size",),
            ),
        ),
        ours["SHOWN"],
        ours["paper"](),
    )


def _run(source: str, size: int, steps: tuple, start: str = "synthetic") -> Cell:
    needs = ("world",) if source == "real" else ("world", start)
    # Its model is another one than the study's: what it does says nothing of the other's speed.
    steps = tuple(
        dataclasses.replace(step, trials=(), work=step.work and dataclasses.replace(step.work, kind="train smoke"))
        for step in steps
    )
    return Cell(f"{source}-{size}", {"source": source, "size": size, "seed": 0}, steps, needs)
