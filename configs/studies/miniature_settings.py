"""Chooses the settings of the miniature's runs, on photographs that no reported number is of.

    python -m synthclip_jax.study --study=configs/studies/miniature_settings.py --workdir=W [--dry-run]

All 16,000 real pairs, half of the pairs seen, one seed, evaluated on the validation split; one thing differs from
`configs/miniature.py` at a time. What is best goes into that file before `configs/studies/miniature.py` is run; no test
photograph is looked at, and no synthetic pair, so that settings favour neither side by choice.
"""

import pathlib
import runpy

from synthclip_jax.study import Cell, Study

_miniature = runpy.run_path(str(pathlib.Path(__file__).with_name("miniature.py")))
SIZE, SEEN = 16_000, 128_000
SETTINGS = {
    "as it is": (),
    "learning rate 1e-3": ("train.learning_rate=1e-3", "train.lr_end=1e-5"),
    "learning rate 4e-3": ("train.learning_rate=4e-3", "train.lr_end=4e-5"),
    "muon": ("train.optimizer=muon",),
    "batch 64": ("train.batch_size=64", "train.learning_rate=1e-3", "train.lr_end=1e-5"),
    "width 192": ("model.vision.width=192", "model.vision.heads=6"),
    "patch 4": ("model.vision.patch_size=4",),
    "no crops": ("data.crop_scale=(1.0,1.0)", "data.crop_ratio=(1.0,1.0)"),
    "slip tower": ("model.tower=slip",),
    "two layers": ("model.vision.layers=2",),
}


def get_study(seeds: str = "1"):
    cells = [_miniature["world"]()]
    for seed in range(int(seeds)):
        for setting, values in SETTINGS.items():
            flags = tuple(f"--config.{value}" for value in values)
            steps = _miniature["trained"](_miniature["real"](), SIZE, seed, SEEN, flags, "validation")
            name = "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in setting)
            cells.append(Cell(f"{name}-{seed}", {"setting": setting, "seed": seed}, steps, ("world",)))
    return Study(
        "miniature_settings",
        "with which settings do the runs of the miniature learn most from as many pairs?",
        tuple(cells),
        shown=_miniature["SHOWN"],
    )
