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
    "learning rate 5e-4": ("train.learning_rate=5e-4", "train.lr_end=5e-6"),
    "learning rate 2e-3": ("train.learning_rate=2e-3", "train.lr_end=2e-5"),
    "adamw": ("train.optimizer=adamw",),
    "adamw, learning rate 5e-4": ("train.optimizer=adamw", "train.learning_rate=5e-4", "train.lr_end=5e-6"),
    "adamw, learning rate 2e-3": ("train.optimizer=adamw", "train.learning_rate=2e-3", "train.lr_end=2e-5"),
    "batch 64": ("train.batch_size=64",),
    "patch 4": ("model.vision.patch_size=4",),
    "two layers": ("model.vision.layers=2",),
    "two layers of text": ("model.text.layers=2",),
    "width 192": ("model.vision.width=192", "model.vision.heads=6"),
    "slip tower": ("model.tower=slip",),
    "no crops": ("data.crop_scale=(1.0,1.0)", "data.crop_ratio=(1.0,1.0)"),
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
