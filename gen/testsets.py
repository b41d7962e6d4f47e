"""Test sets for models trained on sprites: classification and retrieval in CLIP_benchmark's webdataset layout.

    python -m gen.testsets --config=configs/quickstart.py --workdir=runs/quickstart

makes in W/testsets
- `composites`: the same art in captions that were not used for training, with seeds of their own,
- `noto_color`: the same things by another artist (Noto Color Emoji), whose drawings of the core nouns come with this
  package; for others the font has to be on the system,
- `noto_outline`: the same things as black lines on white (Noto Emoji, from the package manimgx-fonts),
- `scenes`: images as in `composites`, other ones, each with the caption it was drawn from, for retrieval,
- `choices`: the same, each with a wrong caption beside its own, which differs in one thing.

The classes are the concepts of the bank that came from the sprites' vocabulary. What is there already is left alone.
The sets do not depend on the run's seed (but for the captions they have to avoid), so runs can be compared on them. A
set with a caption that has come into the training data since, as in another version, is set aside and made again.
"""

import functools
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gen.checks.testsets import note_testsets
from gen.concepts import load_bank
from gen.held_out.captions import caption_key, held_out_captions, kept_captions, two_captions
from gen.held_out.drawings import (
    PER_CLASS,
    Example,
    choices,
    composites,
    find_color_font,
    find_outline_font,
    font_is_needed,
    noto_color,
    noto_outline,
    scenes,
)
from gen.shards import tars
from gen.shards.local import Executor, run_local
from gen.shards.store import ShardOutput, StageStore, sha256
from gen.sprites import ATTRIBUTION, Noun
from gen.sprites.nouns import by_name
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.evals.datasets import CHOICE
from synthclip_jax.files.locations import Location, location, place
from synthclip_jax.files.storage import StoreError
from synthclip_jax.wording import make_parser
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import stage_folder

ZEROSHOT_TEMPLATES = (
    "a {c}.",
    "a photo of a {c}.",
    "a picture of a {c}.",
    "a {c} on a white background.",
    "a {c} in a field.",
    "a {c} on a table.",
)
OFL = "SIL Open Font License 1.1 (https://openfontlicense.org)"
LICENCES = {
    "composites": ATTRIBUTION,
    "noto_color": f"Images show glyphs of Noto Color Emoji, copyright Google Inc., licensed under the {OFL}.",
    "noto_outline": f"Images show glyphs of Noto Emoji, copyright Google Inc., licensed under the {OFL}.",
    "scenes": ATTRIBUTION,
    "choices": ATTRIBUTION,
}
# What the sets of captioned images are for, and what CLIP_benchmark calls it.
CAPTIONED = {"scenes": ("retrieval", "retrieval"), "choices": ("the choice between two captions", CHOICE)}

Maker = Callable[[], Iterable[Example]]


def webdataset(name: str, nouns: Sequence[Noun], examples: Iterable[Example]) -> tuple[dict[str, bytes], int]:
    """The files of a test set in CLIP_benchmark's layout, and how many images it has."""
    buffer, count = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for png, answer in examples:
            for suffix, data in (("cls" if isinstance(answer, int) else "txt", str(answer).encode()), ("png", png)):
                tars.add(tar, f"{count:06d}.{suffix}", data)
            count += 1
    files = {
        "test/0.tar": buffer.getvalue(),
        "test/nshards.txt": b"1\n",
        "README.md": _readme(name, len(nouns), count).encode(),
    }
    if name in CAPTIONED:
        files["dataset_type.txt"] = f"{CAPTIONED[name][1]}\n".encode()
    else:
        files["classnames.txt"] = _lines(noun.name for noun in nouns)
        files["zeroshot_classification_templates.txt"] = _lines(ZEROSHOT_TEMPLATES)
    return files, count


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _readme(name: str, classes: int, count: int) -> str:
    purpose = CAPTIONED[name][0] if name in CAPTIONED else "zero-shot classification"
    return (
        f"# {name}\n\n{count} images of {classes} classes, for {purpose},"
        f" in CLIP_benchmark's webdataset layout.\n\n{LICENCES[name]}\n"
    )


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Makes the test sets that are not there yet.

    Returns:
      How many images each set has, or why it was left out.

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
    size, outline = config.gen.images.size, find_outline_font()
    needed = font_is_needed(nouns)
    color = find_color_font() if needed else None
    makers: dict[str, Maker | None] = {
        "composites": functools.partial(composites, nouns, used, size),
        "noto_color": functools.partial(noto_color, nouns, color, size) if color or not needed else None,
        "noto_outline": functools.partial(noto_outline, nouns, outline, size) if outline else None,
        "scenes": functools.partial(scenes, nouns, used, size),
        "choices": functools.partial(choices, nouns, used, size),
    }
    missing = {
        "noto_color": "left out: of some concepts no drawing comes with the package, and there is no Noto Color Emoji"
        " here (Debian: apt-get install fonts-noto-color-emoji)",
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
        if name in ("composites", "scenes", "choices"):
            captions = sorted({text for label in range(len(nouns)) for text in _captions(name, nouns, label, used)})
            remake = functools.partial(_remade, name, nouns, make)
            plan["captions"] = kept_captions(store, captions, lambda text: caption_key(text) in used, remake)
            if not plan["captions"]:
                del plan["captions"]  # a set of an older release, the same as would be made now
        store.ensure_plan(plan)
        shard = {"index": 0, "of": 1, "items": len(nouns) * PER_CLASS[name]}
        make_worker = functools.partial(_make_worker, name, nouns, make)
        records = executor(store, [shard], make_worker, label=name, unit="images")
        summary[name] = records[0]["count"]
    note_testsets(workdir)
    return summary


def _captions(name: str, nouns: Sequence[Noun], label: int, used: frozenset[str]) -> list[str]:
    if name == "choices":
        return [text for two in two_captions(nouns, label, used, PER_CLASS[name]) for text in two]
    return held_out_captions(nouns[label], used, PER_CLASS[name])


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
    parser = make_parser("gen.testsets", __doc__)
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=place, help="folder of the run, after python -m gen")
    arguments, config = parse_args(parser)
    summary = run(config, arguments.workdir)
    for name, what in summary.items():
        print(f"testsets: {name}: {f'{what:,} images' if isinstance(what, int) else what}", flush=True)


if __name__ == "__main__":
    main()
