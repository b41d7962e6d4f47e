"""Test sets for models trained on sprites: classification and retrieval in CLIP_benchmark's webdataset layout.

    python -m gen.testsets --config=configs/quickstart.py --workdir=runs/quickstart

makes in W/testsets
- `composites`: the same art in captions that were not used for training, with seeds of their own,
- `noto_color`: the same things by another artist (Noto Color Emoji), if the font is on the system,
- `noto_outline`: the same things as black lines on white (Noto Emoji, from the package manimgx-fonts),
- `scenes`: pictures as in `composites`, other ones, each with the caption it was drawn from, for retrieval.

The classes are the concepts of the bank that came from the sprites' vocabulary. What is there already is left alone.
The sets do not depend on the run's seed (but for the captions they have to avoid), so runs can be compared on them. A
set with a caption that has come into the training data since, as in another version, is set aside and made again.
"""

import argparse
import functools
import importlib.util
import io
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gen.checks.testsets import note_testsets
from gen.concepts import load_bank
from gen.held_out import kept_captions
from gen.shards import draws
from gen.shards.local import Executor, run_local
from gen.shards.store import ShardOutput, StageStore, sha256
from gen.sprites import ATTRIBUTION, NotDrawable, Noun, draw, read_caption
from gen.sprites.nouns import by_name
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.files.locations import Location, location, place
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import stage_folder

SEED = 0
PER_CLASS = {"composites": 20, "noto_color": 8, "noto_outline": 8, "scenes": 4}
COLOR_FONT_SIZE = 109  # the one size of the bitmaps in Noto Color Emoji
COLOR_FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
)
WEIGHTS = (300, 700)  # the range of Noto Emoji's weight axis
LIGHT_BACKGROUNDS = ((255, 255, 255), (255, 255, 255), (232, 236, 240), (226, 240, 252), (252, 244, 222))
ZEROSHOT_TEMPLATES = (
    "a {c}.",
    "a photo of a {c}.",
    "a picture of a {c}.",
    "a {c} on a white background.",
    "a {c} in a field.",
    "a {c} on a table.",
)
CAPTIONS = (
    "A picture of {a}.",
    "{a} on a white background.",
    "{a} on a yellow background.",
    "{a} on a blue background.",
    "{a} seen at the beach.",
    "{a} deep in the forest.",
    "{a} under the night sky.",
    "{a} in the snow.",
    "{a} in the desert.",
    "{a} on a city street.",
    "{a} on a country road.",
    "{a} in a grassy field.",
    "{a} by the ocean.",
    "{a} at sunset.",
    "{a} in a bright room.",
    "{a} on a table.",
    "{a} below the mountains.",
    "{a} against the sky.",
    "{a} in the rain.",
    "{a} on a stage.",
    "Here is a small {n} in a meadow.",
    "Here is a big {n} in a garden.",
    "{a} beside a tree.",
    "{a} beside a house.",
    "{a} and a flower.",
    "{a} and a ladder.",
    "Two {p} in a park.",
    "Three {p} on a pink background.",
)
OFL = "SIL Open Font License 1.1 (https://openfontlicense.org)"
LICENCES = {
    "composites": ATTRIBUTION,
    "noto_color": f"Pictures show glyphs of Noto Color Emoji, copyright Google Inc., licensed under the {OFL}.",
    "noto_outline": f"Pictures show glyphs of Noto Emoji, copyright Google Inc., licensed under the {OFL}.",
    "scenes": ATTRIBUTION,
}

Example = tuple[bytes, int | str]  # PNG bytes; class, or caption
Maker = Callable[[], Iterable[Example]]


def held_out_captions(noun: Noun, used: frozenset[str], count: int) -> list[str]:
    """Captions for a class: none whose words were a training caption, all with the class as their main object."""
    indefinite = noun.name if noun.plural == noun.name else f"{'an' if noun.name[0] in 'aeiou' else 'a'} {noun.name}"
    captions = []
    for template in CAPTIONS:
        caption = template.format(a=indefinite, n=noun.name, p=noun.plural)
        caption = caption[0].upper() + caption[1:]
        try:
            plan = read_caption(caption, noun.name)
        except NotDrawable:
            continue
        if plan.main.noun is noun and caption_key(caption) not in used:
            captions.append(caption)
    if not captions:
        raise StoreError(f"every test caption of {noun.name!r} was used for training: none is left to test it with")
    captions.sort(key=lambda caption: draws.bits63(SEED, f"{noun.name} {caption}", "test caption"))
    return [captions[index % len(captions)] for index in range(count)]


def caption_key(caption: str) -> str:
    """A caption's words: captions that differ in case and punctuation alone count as the same."""
    return " ".join(re.findall(r"\w+", caption.lower()))


def composites(nouns: Sequence[Noun], used: frozenset[str], size: int) -> Iterable[Example]:
    """Held-out pictures: test captions, and seeds drawn under a purpose that training never uses."""
    for label, noun in enumerate(nouns):
        for index, caption in enumerate(held_out_captions(noun, used, PER_CLASS["composites"])):
            seed = draws.bits63(SEED, f"{noun.name} {index}", "test composite")
            yield _png(draw(caption, noun.name, seed, size)), label


def scenes(nouns: Sequence[Noun], used: frozenset[str], size: int) -> Iterable[Example]:
    """Held-out pictures with their captions. A class with fewer held-out captions than asked for gives each once: two
    pictures of one caption could not be told apart."""
    for noun in nouns:
        for index, caption in enumerate(dict.fromkeys(held_out_captions(noun, used, PER_CLASS["scenes"]))):
            seed = draws.bits63(SEED, f"{noun.name} {index}", "test scene")
            yield _png(draw(caption, noun.name, seed, size)), caption


def noto_color(nouns: Sequence[Noun], font: pathlib.Path, size: int) -> Iterable[Example]:
    """Another artist's colour drawings on light backgrounds, a little scaled and shifted."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), COLOR_FONT_SIZE)

    @functools.cache
    def glyph(emoji: str):
        image = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(image).text((10, 10), chr(int(emoji, 16)), font=face, embedded_color=True)
        return image.crop(image.getbbox())

    for label, noun in enumerate(nouns):
        for index in range(PER_CLASS["noto_color"]):
            rng = np.random.default_rng(draws.bits63(SEED, f"{noun.name} {index}", "test noto_color"))
            background = LIGHT_BACKGROUNDS[int(rng.integers(len(LIGHT_BACKGROUNDS)))]
            yield _png(_centred(glyph(noun.emoji[index % len(noun.emoji)]), background, size, rng)), label


def noto_outline(nouns: Sequence[Noun], font: pathlib.Path, size: int) -> Iterable[Example]:
    """Black lines on white; the font's weight axis gives thin and thick drawings of each thing."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), 2 * size)
    lightest, boldest = WEIGHTS
    count = PER_CLASS["noto_outline"]
    # Setting the weight is slow, drawing is not: weights are the outer loop.
    glyphs = {}
    for index in range(count):
        face.set_variation_by_axes([lightest + (boldest - lightest) * index / (count - 1)])
        for noun in nouns:
            image = Image.new("RGBA", (4 * size, 4 * size))
            emoji = noun.emoji[index % len(noun.emoji)]
            ImageDraw.Draw(image).text((size // 4, size // 4), chr(int(emoji, 16)), font=face, fill="black")
            rng = np.random.default_rng(draws.bits63(SEED, f"{noun.name} {index}", "test noto_outline"))
            glyphs[noun.name, index] = _centred(image.crop(image.getbbox()), (255, 255, 255), size, rng)
    for label, noun in enumerate(nouns):
        for index in range(count):
            yield _png(glyphs[noun.name, index]), label


def _centred(glyph, background: tuple[int, int, int], size: int, rng: np.random.Generator):
    """A glyph on a plain background: 70 to 92% of the side, shifted within what room is left."""
    from PIL import Image

    factor = rng.uniform(0.7, 0.92) * size / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * factor)) for side in glyph.size], Image.Resampling.LANCZOS)
    left, top = (round((size - side) * rng.uniform(0.25, 0.75)) for side in glyph.size)
    image = Image.new("RGB", (size, size), background)
    image.paste(glyph, (left, top), glyph)
    return image


def _png(picture) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, "PNG")
    return buffer.getvalue()


def webdataset(name: str, nouns: Sequence[Noun], examples: Iterable[Example]) -> tuple[dict[str, bytes], int]:
    """The files of a test set in CLIP_benchmark's layout, and how many pictures it has."""
    buffer, count = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for png, answer in examples:
            for suffix, data in (("cls" if isinstance(answer, int) else "txt", str(answer).encode()), ("png", png)):
                member = tarfile.TarInfo(f"{count:06d}.{suffix}")
                member.size = len(data)  # times and owners stay at their zero defaults: same pictures, same bytes
                tar.addfile(member, io.BytesIO(data))
            count += 1
    files = {
        "test/0.tar": buffer.getvalue(),
        "test/nshards.txt": b"1\n",
        "README.md": _readme(name, len(nouns), count).encode(),
    }
    if name == "scenes":
        files["dataset_type.txt"] = b"retrieval\n"
    else:
        files["classnames.txt"] = _lines(noun.name for noun in nouns)
        files["zeroshot_classification_templates.txt"] = _lines(ZEROSHOT_TEMPLATES)
    return files, count


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _readme(name: str, classes: int, count: int) -> str:
    purpose = "retrieval" if name == "scenes" else "zero-shot classification"
    return (
        f"# {name}\n\n{count} pictures of {classes} classes, for {purpose},"
        f" in CLIP_benchmark's webdataset layout.\n\n{LICENCES[name]}\n"
    )


def find_color_font() -> pathlib.Path | None:
    """Noto Color Emoji on this system: the usual places, then fontconfig; None if it is nowhere."""
    candidates = [pathlib.Path(os.path.expanduser(path)) for path in COLOR_FONT_PATHS]
    if shutil.which("fc-list"):
        command = ["fc-list", ":family=Noto Color Emoji", "--format=%{file}\n"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        candidates += [pathlib.Path(line) for line in found.stdout.splitlines()]
    return next((path for path in candidates if path.is_file() and _has_bitmaps(path)), None)


def _has_bitmaps(font: pathlib.Path) -> bool:
    from PIL import ImageFont

    try:
        ImageFont.truetype(str(font), COLOR_FONT_SIZE)
    except OSError:  # the vector variant of the font, which PIL cannot draw in colour
        return False
    return True


def find_outline_font() -> pathlib.Path | None:
    """Noto Emoji in the package manimgx-fonts; None if that is not installed."""
    spec = importlib.util.find_spec("manimgx_fonts")
    if spec is None or spec.origin is None:
        return None
    path = pathlib.Path(spec.origin).parent / "NotoEmoji[wght].ttf"
    return path if path.is_file() else None


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Makes the test sets that are not there yet.

    Returns:
      How many pictures each set has, or why it was left out.

    Raises:
      StoreError: the bank or the balanced captions are missing, the bank has no drawable concept, or the workdir's
        sets were made with another configuration.
    """
    workdir, version = location(workdir), config.gen.version
    known = by_name()
    nouns = [
        known[concept.text]
        for concept in load_bank(workdir, version).concepts
        if concept.source == "sprites" and concept.text in known
    ]
    if not nouns:
        raise StoreError(
            "the concept bank has no entry from the sprites' vocabulary, so there are no classes to test. Add "
            "'sprites' to config.gen.concepts.sources, or evaluate on test sets of your own (config.eval.datasets)"
        )
    path = stage_folder(workdir, "balance", version) / generated.SELECTED
    if not path.exists():
        raise StoreError(
            f"{path}: no balanced captions yet, and test captions must differ from them: run python -m gen"
        )
    used = frozenset(map(caption_key, generated.selected_captions(path)))
    size, color, outline = config.gen.images.size, find_color_font(), find_outline_font()
    makers: dict[str, Maker | None] = {
        "composites": functools.partial(composites, nouns, used, size),
        "noto_color": functools.partial(noto_color, nouns, color, size) if color else None,
        "noto_outline": functools.partial(noto_outline, nouns, outline, size) if outline else None,
        "scenes": functools.partial(scenes, nouns, used, size),
    }
    missing = {
        "noto_color": "left out: no Noto Color Emoji font here (Debian: apt-get install fonts-noto-color-emoji)",
        "noto_outline": "left out: no Noto Emoji here (pip install manimgx-fonts)",
    }
    summary: dict[str, Any] = {}
    for name, make in makers.items():
        if make is None:
            summary[name] = missing[name]
            continue
        store = StageStore(workdir / "testsets" / name)
        plan = {
            "stage": f"testsets/{name}",
            "classes": [noun.name for noun in nouns],
            "per_class": PER_CLASS[name],
            "size": size,
            "emoji": sha256(repr([noun.emoji for noun in nouns]).encode())[:16],
        }
        if name in ("composites", "scenes"):
            captions = sorted({text for noun in nouns for text in held_out_captions(noun, used, PER_CLASS[name])})
            remake = functools.partial(_remade, name, nouns, make)
            plan["captions"] = kept_captions(store, captions, lambda text: caption_key(text) in used, remake)
            if not plan["captions"]:
                del plan["captions"]  # a set of an older release, the same as would be made now
        store.ensure_plan(plan)
        shard = {"index": 0, "of": 1, "items": len(nouns) * PER_CLASS[name]}
        make_worker = functools.partial(_make_worker, name, nouns, make)
        records = executor(store, [shard], make_worker, label=name, unit="pictures")
        summary[name] = records[0]["count"]
    note_testsets(workdir)
    return summary


def _remade(name: str, nouns: Sequence[Noun], make: Maker) -> tuple[dict[str, bytes], int]:
    return webdataset(name, nouns, make())


def _make_worker(name: str, nouns: Sequence[Noun], make: Maker) -> Callable[[Mapping[str, Any]], ShardOutput]:
    def worker(shard: Mapping[str, Any]) -> ShardOutput:
        files, count = webdataset(name, nouns, make())
        return ShardOutput(files, count)

    return worker


@command("testsets")
def main() -> None:
    """Command line of `python -m gen.testsets`."""
    parser = argparse.ArgumentParser(
        prog="python -m gen.testsets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=place, help="folder of the run, after python -m gen")
    arguments, config = parse_args(parser)
    summary = run(config, arguments.workdir)
    for name, what in summary.items():
        print(f"testsets: {name}: {f'{what:,} pictures' if isinstance(what, int) else what}", flush=True)


if __name__ == "__main__":
    main()
