"""What the audit measures of a generated dataset, in memory and time that do not grow with the number of pairs.

Concepts are counted from the arrays that balancing leaves, rejects and scores from commit records, texts and pictures
from a sample of the shards.
"""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.data.readers.agreement import SUFFIX, load_scores
from synthclip_jax.images.decoding import ImageError, open_image
from synthclip_jax.left_out import LeftOut
from synthclip_jax.report.examples import Place, Record, read_columns, read_record, spread
from synthclip_jax.report.workdir import Run

CAPTION_FILES = 24  # shards of captions looked at
CAPTIONS = 200_000  # captions looked at, at most about
WORST = 24  # pairs of lowest agreement shown
OPENING = 3  # words at the beginning of a caption that are compared


@dataclasses.dataclass(frozen=True)
class Concepts:
    """The bank and how often each concept was found.

    Attributes:
      texts, frequency: of each concept; the frequency is that in English text, 0 if unknown.
      category: the number of its category in `categories`.
      before, after: captions that contain it, before and after balancing.
    """

    texts: Sequence[str]
    frequency: Float[np.ndarray, "concepts"]
    category: Int[np.ndarray, "concepts"]
    categories: Sequence[str]
    before: Int[np.ndarray, "concepts"]
    after: Int[np.ndarray, "concepts"]

    def coverage(self, hits: int) -> tuple[int, int]:
        """How many concepts are in so many captions at least, before and after balancing."""
        return int((self.before >= hits).sum()), int((self.after >= hits).sum())


@functools.lru_cache(maxsize=2)
def concepts(run: Run) -> Concepts:
    """The bank of a run with its counts.

    Raises:
      Missing: the captions have not been balanced yet.
    """
    before, after = run.concept_counts()
    texts, frequency, category = [], [], []
    numbers: dict[str, int] = {}
    for concept in run.bank_concepts():
        texts.append(concept["text"])
        frequency.append(concept.get("frequency") or 0.0)
        name = concept.get("category") or concept.get("source") or "none"
        category.append(numbers.setdefault(name, len(numbers)))
    if len(texts) != len(before):
        raise ValueError(f"the bank has {len(texts):,} concepts, the counts are of {len(before):,}")
    return Concepts(texts, np.array(frequency), np.array(category, np.int32), list(numbers), before, after)


def head_share(counts: Int[np.ndarray, "concepts"], share: float = 0.01) -> float:
    """The share of all matches that the most frequent concepts hold: 1% of those found, one at least."""
    found = np.sort(counts[counts > 0])[::-1]
    return float(found[: max(1, round(share * len(found)))].sum() / max(found.sum(), 1))


def share_by_count(counts: Int[np.ndarray, "concepts"]) -> tuple[list[float], list[float]]:
    """For each count t that occurs: the share of all matches that concepts with t captions or fewer hold."""
    values, times = np.unique(counts[counts > 0], return_counts=True)
    held = np.cumsum(values * times)
    return values.tolist(), (held / max(held[-1], 1)).tolist() if len(held) else []


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a sample of the captions says.

    Attributes:
      captions: how many were looked at.
      hits: of these, how many name the concept that they were asked for, as balancing finds it; None: not matched yet.
      openings: how often each beginning of a caption occurs.
      distinct: of all pairs of words in a row, the share that differ from each other.
    """

    captions: int
    hits: int | None
    openings: Sequence[tuple[str, int]]
    distinct: float


@functools.lru_cache(maxsize=2)
def texts(run: Run) -> Texts:
    """Looks at the captions of some shards.

    Raises:
      Missing: there are no captions, or pyarrow is not installed.
    """
    paths = spread(run.caption_files(), CAPTION_FILES)
    openings: collections.Counter[str] = collections.Counter()
    pairs: set[int] = set()
    total = words_in_a_row = 0
    for path in paths:
        for caption in read_columns(path, ["caption"])["caption"]:
            words = caption.lower().split()
            openings[" ".join(words[:OPENING])] += 1
            pairs.update(map(hash, itertools.pairwise(words)))
            words_in_a_row += max(len(words) - 1, 0)
            total += 1
        if total >= CAPTIONS:
            break
    hits, matched = None, 0
    for path in spread(run.match_files(), CAPTION_FILES):
        columns = read_columns(path, ["concept_id", "matches"])
        found = zip(columns["concept_id"], columns["matches"], strict=True)
        hits = (hits or 0) + sum(concept in matches for concept, matches in found)
        matched += len(columns["matches"])
        if matched >= CAPTIONS:
            break
    if hits is not None:
        hits = round(hits * total / max(matched, 1))
    return Texts(total, hits, openings.most_common(8), len(pairs) / max(words_in_a_row, 1))


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some pictures.

    Attributes:
      looked_at: how many.
      undecodable, alike: of these, how many do not decode, and how many look like an earlier one of another caption.
      sheets: some of each category, the largest categories first.
      left_out: what could not be looked at, by cause.
    """

    looked_at: int
    undecodable: int
    alike: int
    sheets: Mapping[str, Sequence[Record]]
    left_out: LeftOut


def pictures(run: Run, categories: int = 12, of_each: int = 8, most: int = 600) -> Sample:
    """Looks at pictures spread over the dataset.

    Raises:
      Missing: there are none.
    """
    known = concepts(run)
    number = {text: index for index, text in enumerate(known.texts)}
    held = np.bincount(known.category, known.after, len(known.categories))
    order = [known.categories[index] for index in np.argsort(-held, kind="stable")[:categories]]
    sheets: dict[str, list[Record]] = {name: [] for name in order}
    seen: dict[bytes, str] = {}
    looked_at = undecodable = alike = 0
    drawn = run.images_of(run.dataset_folder).draw(most)
    for record in drawn.records:
        looked_at += 1
        look = _look(record.image)
        if look is None:
            undecodable += 1
        elif seen.setdefault(look, record.caption) != record.caption:
            alike += 1
        index = number.get(record.concept)
        sheet = sheets.get(known.categories[known.category[index]]) if index is not None else None
        if sheet is not None and len(sheet) < of_each:
            sheet.append(record)
    sheets = {name: sheet for name, sheet in sheets.items() if sheet}
    return Sample(looked_at, undecodable, alike, sheets, drawn.left_out)


def _look(data: bytes) -> bytes | None:
    """64 bits: which neighbour is brighter, in 9 x 8 pixels (difference hash). None: the picture does not decode."""
    try:
        small = np.asarray(open_image(data).convert("L").resize((9, 8)), np.int16)
    except ImageError:
        return None
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well pictures and captions agree.

    Attributes:
      pairs, mean: how many are scored, and their mean cosine.
      no_better: the share that agrees no better with its own caption than with another one.
      histogram: pairs by cosine, in equal bins from -1 to 1.
      worst: (score, record), the lowest first, of the shards looked at.
      step: of the checkpoint that scored them.
      left_out: what could not be looked at, by cause.
    """

    pairs: int
    mean: float
    no_better: float
    histogram: Int[np.ndarray, " bins"]
    worst: Sequence[tuple[float, Record]]
    step: int
    left_out: LeftOut


def agreement(run: Run) -> Agreement:
    """The scores of a run, from its commit records and the sidecars of some shards.

    Raises:
      Missing: the pairs are not scored.
    """
    plan = run.stage("agreement").plan
    records = run.commits("agreement")
    scored = sum(record["count"] - record["undecodable"] for record in records)
    compared = sum(record["compared"] for record in records)
    images = run.images_of(run.pictures_folder)
    left_out = LeftOut.total([images.left_out])
    lowest: list[tuple[float, Place]] = []
    ((reader, shards),) = images.sources
    for shard in shards:
        if not os.path.exists(shard.name + SUFFIX):
            left_out.add("shard without scores", shard.name, unit="files")
            continue
        scores = load_scores(shard.name, len(shard.examples))
        order = [index for index in np.argsort(scores)[:WORST].tolist() if np.isfinite(scores[index])]
        lowest += [(float(scores[index]), Place(reader, shard, shard.examples[index])) for index in order]
    lowest = sorted(lowest, key=lambda item: item[0])[:WORST]
    worst = [(score, record) for score, place in lowest if (record := read_record(place, left_out))]
    return Agreement(
        scored,
        sum(record["sum"] for record in records) / max(scored, 1),
        sum(record["no_better_than_another"] for record in records) / max(compared, 1),
        np.sum([record["histogram"] for record in records], axis=0),
        worst,
        plan["step"],
        left_out,
    )
