"""What does a model know of what no caption named?

    python -m synthclip_jax.study --study=configs/studies/outside_the_bank.py --workdir=W [--dry-run]

The bank loses an item (`sandal`) and, of each other item, one colour; no caption names them. Classes of the test set
are then *inside*; *near* where item and colour were named, but never together; *outside* where the item was not named.
Beside it stand synthetic pairs of the whole bank, and real ones of the whole world, all of the same number: in the
workdir of `configs/studies/miniature.py` they are those that are there.
"""

import pathlib
import runpy

from synthclip_jax.study import Cell, Claim, Study

_HERE = pathlib.Path(__file__)
_miniature = runpy.run_path(str(_HERE.with_name("miniature.py")))
_config = runpy.run_path(str(_HERE.parents[1] / "miniature.py"))
PAIRS = 16_000
WHOLE = {"whole": "synthetic", "real": "real"}  # banks of the miniature's own runs
KINDS = ("inside", "near", "outside")


def get_study(seeds: str = "3"):
    cells = [
        _miniature["world"](),
        _miniature["drawn"]("synthetic", max(_miniature["SYNTHETIC"])),
        # Fewer concepts are left: so many more captions of each.
        _miniature["drawn"]("data-held", PAIRS, "held", (f"--config.gen.captions.per_concept={_per_concept()}",)),
    ]
    for seed in range(int(seeds)):
        steps = _miniature["trained"](_miniature["synthetic"]("data-held"), PAIRS, seed)
        held = Cell(f"held-{seed}", {"source": "held", "size": PAIRS, "seed": seed}, steps, ("world", "data-held"))
        runs = {"held": held, **{bank: _miniature["run"](source, PAIRS, seed) for bank, source in WHOLE.items()}}
        for bank, run in runs.items():
            factors = {"bank": bank, "seed": seed}
            cells += [run, Cell(f"{bank}-groups-{seed}", factors, (), (run.name,), {"colour_item": groups()}, run.name)]
    return Study(
        "outside_the_bank",
        "what does a model know of what no caption named: new pairs of known words, and things of no name?",
        tuple(cells),
        claims=tuple(
            Claim(f"loses_{kind}", statement, _accuracy(kind), {"bank": "whole"}, {"bank": "held"})
            for kind, statement in (
                ("inside", "What is left out costs accuracy on what is still inside the bank."),
                ("near", "A colour and an item that were never named together are named worse than if they were."),
                ("outside", "An item that no caption named is named worse than if it was."),
            )
        ),
        shown={_accuracy(kind): f"{kind} the bank" for kind in KINDS} | {_miniature["ITEM"]: "item, 10 classes"},
    )


def groups() -> dict[str, tuple[str, ...]]:
    """Classes of colour and item, by what the bank of `held` has of them."""
    names, ours = _config["CONCEPTS"][len(_config["ITEMS"]) :], _config["held_out"]()
    outside = tuple(name for name in names if name.endswith(_config["OUTSIDE"]))
    near = tuple(name for name in names if name in ours)
    return {
        "inside": tuple(name for name in names if name not in (*near, *outside)),
        "near": near,
        "outside": outside,
    }


def _per_concept() -> int:
    left = len(_config["CONCEPTS"]) - sum(map(len, (groups()["near"], groups()["outside"]))) - 1  # the item itself
    return -(-PAIRS // left)


def _accuracy(kind: str) -> str:
    return f"zeroshot/colour_item/acc1_of_{kind}"
