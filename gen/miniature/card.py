"""What the miniature's text-to-image model draws, beside photographs, and whether it copies those it was trained on.

    python -m gen.miniature.card --model=DIR --out=DIR

Writes
- `samples.png`: a caption in each row, real scenes on the left, drawn ones on the right;
- `nearest.json`: how far drawn items are from the nearest photograph that the model was trained on (G) and from the
  nearest of as many that it has not seen (R), beside the same of photographs for validation (V), which nobody trained
  on. A model that copies is nearer to G than to R; photographs of V are as near to one as to the other. Its measure is
  in `gen.miniature.crops`. `recognised` is the share whose nearest photograph of R is of the kind asked for;
- `README.md`: the model card, if `--account` names the folder with the training's `loss.csv` and `training.json`.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gen.engines.interface import ImageEngine, Rejected, Request
from gen.engines.registry import make_image_engine
from gen.miniature import words
from gen.miniature.card_text import card
from gen.miniature.crops import black_scenes, crops, nearest, photograph_crops
from gen.miniature.photographs import FOLDER, Photographs, read_photographs
from gen.miniature.scenes import NO_ITEM, SLOTS, Scenes, described, render, uniforms
from synthclip_jax.config import default_config
from synthclip_jax.errors import command
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.wording import make_parser

SIDE = 32
REAL, DRAWN, ENLARGED, CAPTION_WIDTH, GAP = 4, 6, 2, 400, 4  # scenes in a row; pixels
MORE_ITEMS = (((0, "red"), (8, "blue")), ((9, "green"), (3, "pink")), ((1, "blue"), (6, "orange"), (7, "purple")))


def draw(engine: ImageEngine, scenes: Scenes, first_seed: int) -> np.ndarray:
    """An image for each caption; black where there is none."""
    requests = [Request(caption, "", first_seed + number) for number, caption in enumerate(scenes.captions)]
    outcomes = engine.generate(requests)
    return np.stack([np.zeros((SIDE, SIDE, 3), np.uint8) if isinstance(one, Rejected) else one for one in outcomes])


def compare(photographs: Photographs, engine: ImageEngine, images: int, references: int, seed: int) -> dict[str, Any]:
    """What `nearest.json` holds."""
    scenes = black_scenes(photographs, "validation", "card", images, seed)
    labels = scenes.labels[:, 0]
    queries = {"V": photograph_crops(photographs, scenes, SIDE)[0]}
    queries["drawn"] = crops(draw(engine, scenes, seed * 10**6), scenes.tints[:, 0])
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in queries}
    for name, split in (("G", "generator"), ("R", "real")):
        there, kinds = photograph_crops(photographs, black_scenes(photographs, split, "card", references, seed), SIDE)
        for query, pixels in queries.items():
            distances, places = nearest(pixels, there)
            found[query][name] = (distances, kinds[places])
    threshold = float(np.quantile(found["V"]["G"][0], 0.01))
    result: dict[str, Any] = {"images": len(labels), "photographs_of_each": references, "seed": seed}
    for query, by_name in found.items():
        to_g, to_r = by_name["G"][0], by_name["R"][0]
        result[query] = {
            "median_to_G": _rounded(np.median(to_g)), "median_to_R": _rounded(np.median(to_r)),
            "one_percent_to_G": _rounded(np.quantile(to_g, 0.01)),
            "one_percent_to_R": _rounded(np.quantile(to_r, 0.01)),
            "nearer_to_G_than_to_R": _rounded((to_g < to_r).mean()),
            "nearer_to_G_than_99_percent_of_V": _rounded((to_g < threshold).mean()),
            "recognised": _rounded((by_name["R"][1] == labels).mean()),
        }  # fmt: skip
    result["by_item"] = {
        item: {
            query: {
                "median_to_G": _rounded(np.median(by_name["G"][0][labels == label])),
                "median_to_R": _rounded(np.median(by_name["R"][0][labels == label])),
                "recognised": _rounded((by_name["R"][1][labels == label] == label).mean()),
            }
            for query, by_name in found.items()
        }
        for label, item in enumerate(words.ITEMS)
    }
    return result


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def sheet(photographs: Photographs, engine: ImageEngine, seed: int) -> Any:
    """The picture of `samples.png`."""
    from PIL import Image, ImageDraw

    tints, grounds = list(words.TINTS), list(words.GROUNDS)
    rows: list[Sequence[tuple[int, str]]] = [[(label, tints[label % len(tints)])] for label in range(len(words.ITEMS))]
    rows += MORE_ITEMS
    columns = REAL + DRAWN
    labels, colours = (np.full((len(rows) * columns, SLOTS), fill) for fill in (NO_ITEM, 0))
    shown = np.full(labels.shape, NO_ITEM)
    for row, items in enumerate(rows):
        for place, (label, tint) in enumerate(items):
            own = photographs.of_kind("validation", label)
            for column in range(columns):
                at = row * columns + column
                labels[at, place], colours[at, place] = label, tints.index(tint)
                shown[at, place] = own[(column + 7 * row) % len(own)]
    chosen = np.repeat(np.arange(len(rows)) % len(grounds), columns)
    drawn = uniforms(seed, "card sheet", len(labels), 20)
    scenes = described(Scenes(shown, labels, colours, chosen, [""] * len(labels), drawn))
    images = render(photographs, scenes, SIDE)
    made = draw(engine, scenes, seed * 10**6 + 500_000)
    cell = SIDE * ENLARGED + GAP
    picture = Image.new("RGB", (CAPTION_WIDTH + columns * cell + 2 * GAP, len(rows) * cell + 16), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((CAPTION_WIDTH, 2), "photographs", fill="black")
    pen.text((CAPTION_WIDTH + REAL * cell + 2 * GAP, 2), "drawn", fill="black")
    for at, caption in enumerate(scenes.captions):
        row, column = divmod(at, columns)
        image = Image.fromarray((images if column < REAL else made)[at])
        left = CAPTION_WIDTH + column * cell + (2 * GAP if column >= REAL else 0)
        picture.paste(image.resize((SIDE * ENLARGED,) * 2, Image.Resampling.NEAREST), (left, 16 + row * cell))
        if column == 0:
            pen.text((GAP, 16 + row * cell + 26), caption.removeprefix("a photo of "), fill="black")
    return picture


@command("card")
def main() -> None:
    """Command line of `python -m gen.miniature.card`."""
    import io

    parser = make_parser("gen.miniature.card", __doc__)
    parser.add_argument(
        "--model", default="miniature", help="folder of the pipeline (default: the one in this package)"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder that is filled")
    parser.add_argument("--account", type=pathlib.Path, help="folder of loss.csv and training.json")
    parser.add_argument("--engine", default="diffusers", choices=("diffusers", "flax"))
    parser.add_argument("--images", type=int, default=1000, help="drawn, to be compared (default 1,000)")
    parser.add_argument("--references", type=int, default=20_000, help="photographs of G, and of R (default 20,000)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photographs", default=FOLDER, help=f"folder of the idx files (default {FOLDER})")
    arguments = parser.parse_args()
    photographs = read_photographs(arguments.photographs)
    settings = default_config().gen.images
    settings.update(engine=arguments.engine, model=arguments.model, generate_size=SIDE, size=SIDE, dtype="float32")
    settings.update(scheduler="dpmsolver++", steps=arguments.steps, guidance=arguments.guidance, batch_size=100)
    engine = make_image_engine(settings)
    arguments.out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sheet(photographs, engine, arguments.seed).save(buffer, "PNG")
    write_atomic(arguments.out / "samples.png", buffer.getvalue())
    print(f"card: {arguments.out / 'samples.png'}", flush=True)
    result = compare(photographs, engine, arguments.images, arguments.references, arguments.seed)
    result |= {"engine": arguments.engine, "steps": arguments.steps, "guidance": arguments.guidance}
    write_atomic(arguments.out / "nearest.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"card: {arguments.out / 'nearest.json'}", flush=True)
    if arguments.account:
        write_atomic(arguments.out / "README.md", card(arguments.account, result).encode())


if __name__ == "__main__":
    main()
