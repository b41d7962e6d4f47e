"""Writes the world of the miniature: scenes of photographs with captions, to train CLIP on and to test it.

    apt install dataset-fashion-mnist
    python -m gen.miniature --out=runs/world --real=16000

In DIR are then
- `real/`: webdataset tars (`wds:DIR/real`), and with --generator=N `generator/`, of the photographs that the
  text-to-image model was trained on,
- `validation/` and `test/`: `item`, `colour_item` and `retrieval`, in CLIP_benchmark's layout,
- `concepts.txt`, the concept bank, and `templates.json`, for captions by `python -m gen` as the scenes have them,
- `world.json`: what each set holds, and how many photographs two of them share: none.

No photograph is in two of generator, validation, real and test. What is there already, with the same settings, is left
alone. The first scenes of a larger set are those of a smaller one.
"""

import argparse
import itertools
import json
import pathlib
from typing import Any

from gen.miniature import words
from gen.miniature.photographs import FOLDER, read_photographs
from gen.miniature.sets import TASKS, World, write_test, write_training
from synthclip_jax.errors import command
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.wording import make_parser

# For `python -m gen` on the miniature's own concepts: captions of the same distribution as those of the scenes.
CONFIG = {
    "gen.concepts.sources": ["lists"], "gen.captions.engine": "templates", "gen.balance.deduplicate": False,
    "gen.images.model": "miniature", "gen.images.generate_size": 32, "gen.images.size": 32,
    "gen.images.jpeg_quality": 95,
}  # fmt: skip


def write(world: World, out: pathlib.Path, counts: dict[str, int]) -> dict[str, Any]:
    """Writes all sets.

    Args:
      counts: images of `real`, `generator`, `validation`, `test` and `retrieval`; 0: no such set.

    Returns:
      The record of each set by its name.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = {
        split: write_training(world, split, counts[split], out / split)
        for split in ("real", "generator")
        if counts[split]
    }
    for split in ("validation", "test"):
        for task in TASKS:
            count = min(counts[split], counts["retrieval"]) if task == "retrieval" else counts[split]
            if count:
                records[f"{split}/{task}"] = write_test(world, split, task, count, out / split / task)
    write_atomic(out / "concepts.txt", "".join(f"{concept}\n" for concept in words.CONCEPTS).encode())
    lists = {length: list(words.templates(length)) for length in ("all", *words.LENGTHS)}
    write_atomic(out / "templates.json", (json.dumps(lists, indent=1) + "\n").encode())
    shared = {
        f"{first} and {second}": len(set(records[first]["numbers"]) & set(records[second]["numbers"]))
        for first, second in itertools.combinations(records, 2)
        if first.partition("/")[0] != second.partition("/")[0]
    }
    account = {
        "settings": world.settings(),
        "photographs": {split: len(numbers) for split, numbers in world.photographs.splits.items()},
        "sets": {
            name: {key: value for key, value in record.items() if key != "numbers"} for name, record in records.items()
        },
        "photographs_shared": shared,
        "config": CONFIG,
    }
    write_atomic(out / "world.json", (json.dumps(account, indent=1) + "\n").encode())
    return records


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"given {text!r}, allowed: a whole number, 0 or more")
    return int(text)


@command("miniature")
def main() -> None:
    """Command line of `python -m gen.miniature`."""
    parser = make_parser("gen.miniature", __doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder that is filled")
    for name, default, what in (
        ("--real", 16_000, "scenes to train CLIP on"),
        ("--generator", 0, "scenes of the photographs that are for the text-to-image model alone"),
        ("--validation", 4000, "images of each of its sets for classification; each takes a photograph of its own"),
        ("--test", 10_000, "the same of the official test photographs"),
        ("--retrieval", 1000, "images of each set for retrieval"),
    ):
        parser.add_argument(name, type=_count, default=default, help=f"{what} (default {default:,})")
    parser.add_argument("--side", type=int, default=32, help="of the images, pixels: 32 to 64 (default 32)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes; the splits of photographs do not depend on it")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs (default 95)")
    parser.add_argument("--photographs", default=FOLDER, help=f"folder of the idx files (default {FOLDER})")
    parser.add_argument("--unchecked", action="store_true", help="take other photographs than those of the release")
    arguments = parser.parse_args()
    if not 32 <= arguments.side <= 64 or not 1 <= arguments.quality <= 100:
        parser.error("allowed are a --side of 32 to 64 and a --quality of 1 to 100")
    photographs = read_photographs(arguments.photographs, arguments.unchecked)
    world = World(photographs, arguments.side, arguments.seed, arguments.quality)
    names = ("real", "generator", "validation", "test", "retrieval")
    records = write(world, arguments.out, {name: getattr(arguments, name) for name in names})
    for name, record in records.items():
        print(
            f"miniature: {name}: {record['images']:,} images of {record['photographs']:,} photographs,"
            f" {record['captions']:,} different captions",
            flush=True,
        )


if __name__ == "__main__":
    main()
