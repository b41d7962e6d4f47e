"""How a test set's classes relate to the concepts a run was trained on: in the bank, near it, or outside, and how often
the captions name them. Needs no JAX; reads the workdir's files alone.

A class is *in the bank* if its name is an entry, case aside; *near* if an entry differs from it by number ("dogs"), by
hyphens and spaces, or is a part of it or has it as a part, in whole words ("golden retriever" and "retriever"); else
*out*. How often it was seen is counted in the captions that were selected for training, as whole words, in the singular
or the plural.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import intervals
from synthclip_jax.text.presence import Presence, is_unspaced, normalise
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import trained_version

IN, NEAR, OUT = "in the bank", "near the bank", "out of the bank"
KINDS = (IN, NEAR, OUT)
# Classes by the number of captions that name them: 0, 1 to 9, 10 to 99, ...
EDGES = (0, 1, 10, 100, 1000, 10_000, 100_000)


@dataclasses.dataclass(frozen=True)
class Class:
    """One class of a test set. `seen`: in how many training captions; None where those are not there."""

    name: str
    kind: str
    seen: int | None


def words(name: str) -> tuple[str, ...]:
    """A name's words in lower case, singular by the plain rules of English."""
    name = normalise(name)
    if is_unspaced(name):  # each character is a word
        name = Presence("zh").spaced(name)
    return tuple(map(_singular, re.findall(r"\w+", name.lower())))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def read_bank(workdir: str | pathlib.Path) -> list[str]:
    """The texts of the concept bank that a run was trained with; empty if its workdir has none.

    Raises:
      EvaluationError: a line of it is damaged.
    """
    path = trained_version(workdir).stage_folder("concepts") / generated.BANK
    return [concept["text"] for concept in generated.read_bank(path, EvaluationError)] if path.is_file() else []


def read_captions(workdir: str | pathlib.Path) -> list[str] | None:
    """The captions selected for training; None if they are not there."""
    path = trained_version(workdir).stage_folder("balance") / generated.SELECTED
    return generated.selected_captions(path) if path.is_file() else None


def classify(names: Sequence[str], bank: Iterable[str], captions: Iterable[str] | None) -> list[Class]:
    """Each class with its kind and its count."""
    bank = list(bank)
    exact = {normalise(entry).lower() for entry in bank}
    alike = {words(entry) for entry in bank}
    longest = max(map(len, alike), default=0)
    classes = [words(name) for name in names]
    parts = set(classes)
    # Entries that have a class as a part of them.
    within = {run for entry in alike for run in _runs(entry, longest) if run in parts}
    counts = None if captions is None else _count(parts, captions)
    found = []
    for name, split in zip(names, classes, strict=True):
        if normalise(name).lower() in exact:
            kind = IN
        elif split in alike or split in within or any(run in alike for run in _runs(split, longest)):
            kind = NEAR
        else:
            kind = OUT
        found.append(Class(name, kind, None if counts is None else counts[split]))
    return found


def _runs(split: tuple[str, ...], longest: int) -> Iterable[tuple[str, ...]]:
    """All runs of neighbouring words."""
    for start in range(len(split)):
        for end in range(start + 1, min(len(split), start + longest) + 1):
            yield split[start:end]


def _count(names: set[tuple[str, ...]], captions: Iterable[str]) -> collections.Counter[tuple[str, ...]]:
    longest = max(map(len, names), default=0)
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for caption in captions:
        counts.update({run for run in _runs(words(caption), longest) if run in names})
    return counts


def of_run(workdir: str | pathlib.Path, names: Sequence[str]) -> list[Class]:
    """The classes by a workdir's bank and captions."""
    return classify(names, read_bank(workdir), read_captions(workdir))


@dataclasses.dataclass(frozen=True)
class Group:
    """Classes of one kind: how many, how many images, and their accuracy with its 95% interval."""

    name: str
    classes: int
    images: int
    accuracy: float
    low: float
    high: float


def by_kind(
    classes: Sequence[Class], right: Int[np.ndarray, " classes"], count: Int[np.ndarray, " classes"]
) -> list[Group]:
    """Accuracy of the classes in, near and out of the bank; kinds without images are left out."""
    return _groups([each.kind for each in classes], KINDS, right, count)


def by_frequency(
    classes: Sequence[Class], right: Int[np.ndarray, " classes"], count: Int[np.ndarray, " classes"]
) -> list[Group]:
    """Accuracy by how many training captions name a class, in powers of ten."""
    names = []
    for index, edge in enumerate(EDGES):
        after = EDGES[index + 1] - 1 if index + 1 < len(EDGES) else None
        names.append(
            f"{edge:,} or more" if after is None else f"{edge:,}" if after == edge else f"{edge:,} to {after:,}"
        )
    places = [names[int(np.searchsorted(EDGES, each.seen, "right")) - 1] for each in classes if each.seen is not None]
    return _groups(places, names, right, count) if len(places) == len(classes) else []


def _groups(
    places: Sequence[str], names: Sequence[str], right: Int[np.ndarray, " classes"], count: Int[np.ndarray, " classes"]
) -> list[Group]:
    groups = []
    for name in names:
        rows = [row for row, place in enumerate(places) if place == name]
        images, hits = int(count[rows].sum()), int(right[rows].sum())
        if images:
            low, high = intervals.wilson(hits, images)
            groups.append(Group(name, len(rows), images, hits / images, low, high))
    return groups


def trend(seen: Float[np.ndarray, " classes"], accuracy: Float[np.ndarray, " classes"]) -> Mapping[str, Any]:
    """Rank correlation (Spearman's) of accuracy with how often a class was seen, and the line of least squares over
    log10(1 + seen): `correlation`, `slope` (of accuracy, per factor of ten) and `start` (accuracy of one never seen).
    Empty where all classes were seen equally often."""
    if len(seen) < 3 or np.ptp(seen) == 0:
        return {}
    x = np.log10(1 + np.asarray(seen, float))
    slope, start = np.polyfit(x, accuracy, 1)
    correlation = np.corrcoef(_ranks(x), _ranks(accuracy))[0, 1] if np.ptp(accuracy) else 0.0
    return {"correlation": float(correlation), "slope": float(slope), "start": float(start)}


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The places of values in ascending order, equal ones sharing theirs. scipy.stats takes a second to import."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
