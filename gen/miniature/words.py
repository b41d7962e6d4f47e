"""What scenes are made of, in words: items, tints, grounds, the concept bank, and the templates of captions.

A caption is a template with a concept in it, as the engine `templates` makes it; so captions of real scenes and of
generated images have one distribution, if the concepts are `CONCEPTS` and the templates are `templates()`. Needs
nothing but Python.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

# In the order of the labels of the photographs.
ITEMS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TINTS = {
    "red": (222, 40, 40), "orange": (246, 138, 28), "yellow": (240, 222, 48), "green": (48, 168, 70),
    "cyan": (60, 202, 216), "blue": (50, 78, 222), "purple": (138, 58, 180), "pink": (246, 140, 190),
}  # fmt: skip
GROUNDS = {"white": (238, 238, 238), "black": (20, 20, 20), "grey": (128, 128, 128), "beige": (222, 204, 168)}
# The bank: an item in any tint, then each item in each tint.
CONCEPTS = (*ITEMS, *(f"{tint} {item}" for item in ITEMS for tint in TINTS))

LENGTHS = ("short", "medium", "long")
TEMPLATES = 600  # many, since they name the other items of a scene; some are there several times
SHARES = (0.6, 0.85)  # of templates with no other item; with at most one
GROUND_NAMED = 0.4  # of templates
TINT_NAMED = 8 / 9  # of the other items: that of the concepts
SLOT = "{concept}"

_PLAIN = {
    "short": ("{concept}", "the {concept}", "one {concept}", "{concept}, a photo"),
    "medium": (
        "a photo of the {concept}.", "a picture of the {concept}.", "here is the {concept} in a shop.",
        "this picture shows the {concept}.",
    ),
    "long": (
        "a small product photo of the {concept}, as it is shown in the catalogue of a shop.",
        "this is a picture from a shop, and what it shows is the {concept}.",
        "somebody took a photo of the {concept} in even light, to sell it in a shop.",
        "the {concept} can be seen in this picture, which was made for a catalogue.",
    ),
}  # fmt: skip
_GROUND = {
    "short": ("{concept} on {ground}", "the {concept}, {ground} background"),
    "medium": ("a photo of the {concept} on a {ground} background.", "the {concept} in front of a {ground} wall."),
    "long": (
        "a product photo of the {concept}, taken in front of a plain {ground} background.",
        "the {concept} can be seen in this picture, whose background is {ground} all over.",
    ),
}  # fmt: skip
_ONE = ("{concept} and the {0}", "{concept} next to the {0}", "{concept} beside the {0}", "{concept} with the {0}")
_TWO = ("{concept}, the {0} and the {1}", "{concept} with the {0} and the {1}")


class Item(NamedTuple):
    """An item as a caption names it.

    Attributes:
      label: of its kind: a place in `ITEMS`.
      tint: a key of `TINTS`; empty: any.
    """

    label: int
    tint: str = ""

    def __str__(self) -> str:
        return f"{self.tint} {ITEMS[self.label]}".strip()


class Template(NamedTuple):
    """A text with `{concept}` in it, and what it says of the scene.

    Attributes:
      length: one of `LENGTHS`.
      ground: a key of `GROUNDS`; empty: any.
      others: items beside that of the concept.
    """

    text: str
    length: str
    ground: str
    others: tuple[Item, ...]

    def caption(self, concept: str) -> str:
        """The caption of a concept."""
        return self.text.replace(SLOT, concept)


def concept_item(concept: int) -> Item:
    """The item that a concept, by its place in `CONCEPTS`, names."""
    if concept < len(ITEMS):
        return Item(concept)
    label, tint = divmod(concept - len(ITEMS), len(TINTS))
    return Item(label, tuple(TINTS)[tint])


@functools.cache
def all_templates() -> tuple[Template, ...]:
    """All templates; each is as likely as any other, and some are equal."""
    return tuple(map(_template, range(TEMPLATES)))


def templates(length: str = "all") -> tuple[str, ...]:
    """Texts with `{concept}` in them, for `config.gen.captions.templates`.

    Args:
      length: `short`, `medium`, `long` or `all`.
    """
    return tuple(template.text for template in all_templates() if length in ("all", template.length))


def described(items: Sequence[Item], ground: str) -> str:
    """The caption that says all of a scene."""
    names = [f"the {item}" for item in items]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"a photo of {listed} on a {ground} background."


def _template(number: int) -> Template:
    length = LENGTHS[number % len(LENGTHS)]
    ground = _pick(number, "ground", tuple(GROUNDS)) if _share(number, "ground named") < GROUND_NAMED else ""
    text = _pick(number, "text", (_GROUND if ground else _PLAIN)[length]).replace("{ground}", ground)
    count = sum(_share(number, "others") >= share for share in SHARES)
    others = []
    for place in range(count):
        tint = _pick(number, f"tint {place}", tuple(TINTS))
        named = _share(number, f"tint named {place}") < TINT_NAMED
        others.append(Item(_pick(number, f"item {place}", range(len(ITEMS))), tint if named else ""))
    if others:
        joined = _pick(number, "joined", _ONE if count == 1 else _TWO)
        text = text.replace(SLOT, joined.format(*map(str, others), concept=SLOT))
    return Template(text, length, ground, tuple(others))


def _share(number: int, purpose: str) -> float:
    """A draw from [0, 1) that is the same everywhere and for ever."""
    digest = hashlib.blake2b(f"{number}\x1f{purpose}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") / 2**48


def _pick(number: int, purpose: str, choices: Sequence) -> Any:
    return choices[int(_share(number, purpose) * len(choices))]
