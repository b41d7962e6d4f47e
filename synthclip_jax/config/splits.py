"""Which folders of a test set are its splits, whatever they are called: `valid`, `Testing`, `seg_train`, `val2017`.

A split is a name that says so: one of the words below, alone or with what people put around it. Only where two or more
folders side by side are splits is any of them taken for one: a class may be called `train`.
"""

import re
from collections.abc import Iterable, Sequence

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Kinds of splits by what they are for, and the words for each in the order in which one is taken for it.
KINDS = {
    TEST: ("test", "testing", "tst"),
    "evaluation": ("evaluation", "eval"),
    VALIDATION: ("validation", "val", "valid"),
    "development": ("dev", "development"),
    "holdout": ("holdout", "heldout"),
    TRAIN: ("train", "training", "trn"),
    "all to train on": ("trainval",),
    "unlabeled": ("unlabeled", "unlabelled", "pred", "predict", "prediction"),
    "extra": ("extra",),
}
# What a number is reported on unless said otherwise: the first of these that is there.
REPORTED_ON = (TEST, "evaluation", VALIDATION, "development", "holdout", TRAIN, "all to train on", "extra")
# What else serves where a split is asked for by its usual name.
_STANDS_FOR = {TRAIN: (TRAIN,), VALIDATION: (VALIDATION, "development"), TEST: (TEST,)}
_KIND = {word: kind for kind, words in KINDS.items() for word in words}
_WORD = "|".join(sorted(_KIND, key=len, reverse=True))
_NAME = re.compile(
    rf"(?P<before>[a-z0-9]+[ _.-]+)??(?P<word>{_WORD})(?P<after>[ _.-]*(?:set|split|data|images|imgs|folder|dir|\d+)?)"
)


def kind_of(name: str) -> str:
    """The kind of split that a folder of this name is; empty if the name is that of no split."""
    match = _NAME.fullmatch(name.casefold())
    return _KIND[match["word"]] if match else ""


def among(names: Iterable[str]) -> list[str]:
    """Those of the folders side by side whose names are splits': two or more, or none.

    A word before the split's must be the same for all: `seg_train` and `seg_test` are splits, `freight_train` and
    `passenger_train` are not.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if match := _NAME.fullmatch(name.casefold()):
            found.setdefault(match["before"] or "", []).append(name)
    groups = [group for group in found.values() if len({name.casefold() for name in group}) > 1]
    groups = [group for group in groups if len({kind_of(name) for name in group}) > 1]
    return max(groups, key=len, default=[])


def find(wanted: str, names: Sequence[str]) -> list[str]:
    """The split that is asked for: the one of this name, else case aside, else those of its kind.

    Returns:
      One name; none if there is no such split; several if it cannot be told which is meant.
    """
    if wanted in names:
        return [wanted]
    if alike := [name for name in names if name.casefold() == wanted.casefold()]:
        return alike
    kind = kind_of(wanted)
    for each in _STANDS_FOR.get(kind, (kind,)) if kind else ():
        if of_kind := [name for name in names if kind_of(name) == each]:
            return _first_words(of_kind)
    return []


def usual(names: Sequence[str]) -> list[str]:
    """The split that a number is reported on: `test`, else `validation`, else `train`, by any of their words.

    Returns:
      One name; none if there is none but `unlabeled`; several of one word if they differ by case alone.
    """
    for kind in REPORTED_ON:
        if of_kind := [name for name in names if kind_of(name) == kind]:
            return _first_words(of_kind)
    return []


def _first_words(names: Sequence[str]) -> list[str]:
    """Of splits of one kind those called by the most usual word: `val` and not `valid`, if both are there."""

    def place(name: str) -> int:
        match = _NAME.fullmatch(name.casefold())
        assert match
        return KINDS[kind_of(name)].index(match["word"])

    first = min(map(place, names))
    chosen = [name for name in names if place(name) == first]
    plain = [name for name in chosen if name.casefold() in _KIND]
    return plain or chosen
