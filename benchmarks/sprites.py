"""Sprites: images per second of the renderer, JPEG included, beside the same images drawn with PIL alone.

    python -m benchmarks.sprites [--images=1500] [--size=64]

Plain: for each object open the PNG, resize, rotate, paste. Both read the same captions and share the backgrounds. One
core; the last number is the ratio.
"""

import io
import time
from collections.abc import Callable

import numpy as np

from gen.engines.image_batches import encode_jpeg
from gen.sprites import draw, read_caption, vocabulary
from gen.sprites.nouns import art_folder
from gen.sprites.scenes import paint_background
from synthclip_jax.wording import make_parser

TEMPLATES = ("A {} on a table.", "A photo of a red {}.", "A {} in the park near a tree.", "Two {} at the beach.")
QUALITY, ROUNDS = 90, 3


def plain_image(caption: str, concept: str, seed: int, size: int) -> bytes:
    """The caption's plan drawn the obvious way."""
    from PIL import Image

    plan, rng = read_caption(caption, concept), np.random.default_rng(seed)
    image = Image.fromarray(paint_background(size, rng, plan.scene, plan.background))
    objects = [plan.main] * plan.main.count + ([plan.second] if plan.second else [])
    for drawn in objects:
        with Image.open(art_folder() / f"{drawn.noun.emoji[0]}.png") as file:
            side = int(size * rng.uniform(0.4, 0.8))
            sprite = file.convert("RGBA").resize((side, side))
        sprite = sprite.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR, expand=True)
        left, top = rng.integers(0, size // 3, 2).tolist()
        image.paste(sprite, (left, top), sprite)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def main() -> None:
    """Prints a line for each way and the ratio."""
    parser = make_parser("benchmarks.sprites", __doc__)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    arguments = parser.parse_args()
    size = arguments.size
    names = [noun.name for noun in vocabulary() if noun.core]
    jobs = [(names[i % len(names)], TEMPLATES[i % len(TEMPLATES)], i) for i in range(arguments.images)]
    jobs = [(template.format(name), name, seed) for name, template, seed in jobs]

    def sprites(caption: str, name: str, seed: int) -> bytes | None:
        return encode_jpeg(draw(caption, name, seed, size), size, QUALITY)

    def plain(caption: str, name: str, seed: int) -> bytes:
        return plain_image(caption, name, seed, size)

    ways: dict[str, Callable[[str, str, int], bytes | None]] = {"sprites": sprites, "plain PIL": plain}
    speeds = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):  # taken in turns, so that a busy moment hits both
        for name, way in ways.items():
            start = time.process_time()  # CPU time, which other work on the machine disturbs least
            for job in jobs:
                way(*job)
            speeds[name] = max(speeds[name], arguments.images / (time.process_time() - start))
    for name, speed in speeds.items():
        print(f"{name:>9}: {speed:>7,.0f} images/s and core at {size} px")
    print(f"sprites / plain PIL: {speeds['sprites'] / speeds['plain PIL']:.2f}")


if __name__ == "__main__":
    main()
