"""Sections of the audit: what is in the data, beside what the paper found in its own. See `measures`, `signatures`."""

import functools

import numpy as np

from synthclip_jax.report import measures, plots
from synthclip_jax.report.generation import account, figure
from synthclip_jax.report.markup import Html, percent, plural, row, table, tag, text
from synthclip_jax.report.missing import Missing, optional
from synthclip_jax.report.plots import Axis, Line, Mark
from synthclip_jax.report.signatures import Signature, signatures
from synthclip_jax.report.workdir import Run

HITS = (1, 25, 50)
# SynthCLIP (arXiv 2402.01832), table 5: concepts of a bank of 500k that at least so many captions contain.
PAPER_BANK = 500_000
PAPER_COVERAGE = (
    ("CC3M", 39_000, 18_000, 14_000),
    ("SynthCI-3M", 300_000, 36_000, 23_000),
    ("CC12M", 130_000, 48_000, 37_000),
    ("SynthCI-8.8M", 340_000, 230_000, 56_000),
    ("SynthCI-10M", 340_000, 230_000, 85_000),
    ("SynthCI-20M", 340_000, 230_000, 190_000),
    ("SynthCI-30M", 350_000, 240_000, 190_000),
)
CATEGORIES = 26  # bars, one for each of WordNet's noun files
LISTED = 12  # concepts in a list


@functools.lru_cache(maxsize=2)
def sample_of(run: Run) -> measures.Sample | None:
    """What a sample of the pictures shows; None if there is none."""
    return optional(measures.pictures, run)


@functools.lru_cache(maxsize=2)
def agreement_of(run: Run) -> measures.Agreement | None:
    """How well pictures and captions agree; None if they are not scored."""
    return optional(measures.agreement, run)


def findings(run: Run) -> Html:
    """The measures beside their limits, those that are crossed first."""
    found = signatures(run, sample_of(run), agreement_of(run))
    if all(signature.value is None for signature in found):
        raise Missing("There is nothing to audit in this workdir yet.")
    crossed = [signature for signature in found if signature.crossed]
    verdict = (
        f"{len(crossed)} of {len(found)} measures are beyond their limit: "
        + ", ".join(signature.name for signature in crossed)
        if crossed
        else "No measure is beyond its limit"
    )
    order = sorted(found, key=lambda signature: (not signature.crossed, signature.value is None))
    return Html(
        tag("p", tag("b", verdict), ".", class_="note")
        + tag("div", (_finding(signature) for signature in order), class_="findings")
    )


def _finding(signature: Signature) -> Html:
    state = "crossed" if signature.crossed else "unknown" if signature.value is None else "kept"
    shown = "not measured" if signature.value is None else percent(signature.value)
    sign = {"crossed": "✗", "unknown": "–", "kept": "✓"}[state]
    return tag(
        "div",
        tag("p", tag("span", sign, class_="sign"), tag("b", signature.name), class_="name"),
        tag("p", tag("b", shown), tag("small", signature.limit_text), class_="value"),
        tag(
            "p",
            signature.meaning,
            tag("small", f" To do: {signature.remedy}.") if signature.crossed else None,
            class_="about",
        ),
        class_=f"finding {state}",
    )


def coverage(run: Run) -> Html:
    """Concepts found at all, 25 and 50 times, beside the paper's; and who holds the matches."""
    known = measures.concepts(run)
    total = len(known.texts)
    mine = [
        _coverage_row(name, *(known.coverage(hits)[kept] for hits in HITS), total, class_="own")
        for kept, name in enumerate(("all captions", "kept captions"))
    ]
    paper = [_coverage_row(*row, PAPER_BANK) for row in PAPER_COVERAGE]
    head = ("data", *(f"≥ {hits}" for hits in HITS))
    note = (
        f"How many of {total:,} concepts are in at least 1, 25 and 50 captions. Below, the paper's table 5: its bank"
        " has 500,000 concepts, so compare shares, and only with sets of about this size."
    )
    return Html(
        tag("p", note, class_="note")
        + tag("div", table(head, (mine, paper), "flush"), _share_plot(run, known), class_="grid")
    )


def _coverage_row(name: str, *counts: int, class_: str | None = None) -> Html:
    *found, total = counts
    return row(name, *((percent(count / total), tag("small", plots.short(count))) for count in found), class_=class_)


def _share_plot(run: Run, known: measures.Concepts) -> Html:
    """For each t, the share of matches that belongs to concepts with t captions or fewer."""
    lines = []
    for name, counts, style in (("before", known.before, "b"), ("after", known.after, "a")):
        x, y = measures.share_by_count(counts)
        if x:
            lines.append(Line(name, *plots.thin(x, y, log=True), style))
    if not lines:
        raise Missing("No caption contains a concept.")
    low, most = min(min(line.x) for line in lines), max(max(line.x) for line in lines)
    t = run.balance["t"]
    marks = [Mark(f"t = {t:.6g}", x=t)] if low <= t <= most else []
    x_axis = Axis("captions that contain the concept, at most", low, max(2 * low, most), log=True)
    y_axis = Axis("of all matches", 0, 1.02, format=lambda value: f"{100 * value:.0f}%")
    return plots.line_plot("What concepts up to a count hold together", x_axis, y_axis, lines, marks)


def categories(run: Run) -> Html:
    """Share of the bank, of matches before and after balancing, of each category."""
    known = measures.concepts(run)
    size = len(known.categories)
    bank, before, after = (np.bincount(known.category, weights, size) for weights in (None, known.before, known.after))
    before_share, after_share = before / max(before.sum(), 1), after / max(after.sum(), 1)
    order = np.argsort(-after, kind="stable")[:CATEGORIES].tolist()
    most = max(*before_share[order], *after_share[order], 1e-9)
    rows = (
        tag(
            "div",
            tag(
                "span", known.categories[index], tag("small", f" {plural(int(bank[index]), 'concept')}"), class_="what"
            ),
            tag("span", f"{percent(before_share[index])} → {percent(after_share[index])}", class_="count"),
            tag("i", style=f"--w:{100 * before_share[index] / most:.2f}%", class_="before"),
            tag("i", style=f"--w:{100 * after_share[index] / most:.2f}%"),
            class_="bar-row pair",
        )
        for index in order
    )
    key = tag("p", tag("span", "before balancing", class_="key b"), tag("span", "after", class_="key"), class_="keys")
    more = f" The {CATEGORIES} largest of {size}." if size > CATEGORIES else ""
    return Html(
        tag("p", f"Shares of all matches, by the categories that the concepts' sources give them.{more}", class_="note")
        + key
        + tag("div", rows, class_="columns")
    )


def extremes(run: Run) -> Html:
    """The concepts that are there most often, and those that never came up."""
    known = measures.concepts(run)
    most, never = over_represented(known, LISTED), never_seen(known, 4 * LISTED)
    missing = int((known.after == 0).sum())
    top = max(int(known.after.max()), 1)
    rows = (plots.bar_row(known.texts[index], int(known.after[index]), top) for index in most)
    chips = (tag("span", known.texts[index], class_="chip") for index in never)
    return tag(
        "div",
        tag("div", tag("h4", "Most frequent after balancing"), rows),
        tag(
            "div",
            tag("h4", f"In no kept caption: {missing:,} of {len(known.texts):,}"),
            tag("p", [text([chip, " "]) for chip in chips], class_="chips") if missing else tag("p", "None."),
            tag("p", tag("small", "The most common in English first.")) if missing else None,
        ),
        class_="grid",
    )


def over_represented(known: measures.Concepts, count: int) -> list[int]:
    """Concepts by the number of kept captions that contain them, the most frequent first."""
    order = np.argsort(-known.after, kind="stable")[:count]
    return [index for index in order.tolist() if known.after[index]]


def never_seen(known: measures.Concepts, count: int) -> list[int]:
    """Concepts in no kept caption, the most common in English first."""
    unseen = np.flatnonzero(known.after == 0)
    return unseen[np.argsort(-known.frequency[unseen], kind="stable")][:count].tolist()


def sayings(run: Run) -> Html:
    """How captions begin, and how varied they are."""
    texts = measures.texts(run)
    if not texts.captions:
        raise Missing("No caption was accepted.")
    hits = (
        f" {percent(texts.hits / texts.captions)} name the concept that they were asked for, as balancing finds it."
        if texts.hits is not None
        else ""
    )
    note = (
        f"Of {plural(texts.captions, 'caption')} looked at, {percent(texts.distinct)} of the pairs of words in a row"
        f" differ from each other.{hits}"
    )
    most = texts.openings[0][1]
    rows = (plots.bar_row(opening, count, most) for opening, count in texts.openings)
    return Html(tag("p", note, class_="note") + tag("h4", "Commonest beginnings") + tag("div", rows, class_="columns"))


def sheets(run: Run) -> Html:
    """Pictures of the largest categories."""
    sample = sample_of(run)
    if sample is None or not sample.sheets:
        raise Missing("There are no pictures to show yet.")
    panels = (
        tag(
            "details",
            tag("summary", name),
            tag("div", map(figure, records), class_="sheet"),
            open=index < 4,
            class_="panel",
        )
        for index, (name, records) in enumerate(sample.sheets.items())
    )
    return text((account(sample.left_out), panels))


def agreement(run: Run) -> Html:
    """The histogram of scores, and the pairs that agree least."""
    found = agreement_of(run)
    if found is None:
        raise Missing(
            "The pairs are not scored. Any checkpoint can: python -m gen --stages=agreement"
            " --config.gen.agreement.checkpoint=WORKDIR"
        )
    bins = len(found.histogram)
    edges = np.linspace(-1, 1, bins + 1)
    there = np.flatnonzero(found.histogram)
    first, last = int(there[0]), int(there[-1])
    bars = [(float(edges[i]), float(edges[i + 1]), float(found.histogram[i])) for i in range(first, last + 1)]
    x = Axis("cosine of picture and caption", bars[0][0], bars[-1][1])
    y = Axis("pairs", 0, float(found.histogram.max()) * 1.06)
    plot = plots.bar_plot("Agreement", x, y, bars)
    note = (
        f"{plural(found.pairs, 'pair')} scored by the checkpoint of step {found.step:,}: {found.mean:.3f} on average."
        f" {percent(found.no_better)} of the pictures agree no better with their own caption than with another one;"
        " chance is a half."
    )
    worst = (figure(record, f"{score:.2f}") for score, record in found.worst)
    return Html(
        tag("p", note, class_="note")
        + tag("div", plot, class_="narrow")
        + tag("h4", "The pairs that agree least")
        + account(found.left_out)
        + tag("div", worst, class_="sheet")
    )


_MEASURES = (
    ("coverage", "of the balls around real images that hold a generated one: what the images leave out of the world"),
    ("density", "how often images lie in such balls; 1 where they are spread as real ones are"),
    ("nearest_real", "mean distance to the nearest real image"),
    ("diversity", "mean distance to the nearest other generated image"),
)


def beside_real(run: Run) -> Html:
    """Coverage and density beside real images, where an audit has measured them of this version."""
    found = run.measured
    values = found["metrics"]
    rows = (row(name, f"{values[name]:.3f}", meaning) for name, meaning in _MEASURES if name in values)
    counts = {name: int(values.get(name, 0)) for name in ("generated", "reference")}
    about = found["made_from"]
    note = (
        f"{plural(counts['generated'], 'image')} beside {counts['reference']:,} real ones, as unit vectors of the"
        f" checkpoint {about.get('checkpoint', '')}; balls reach to neighbour {about.get('k', '')} (Naeem et al.,"
        " 2020). Compare only numbers of as many images and of the same model."
    )
    return Html(tag("p", note, class_="note") + table(("measure", "value", "meaning"), rows, "flush"))


def whole(run: Run) -> Html:
    """All of it as one section of the run's report, whose other sections show the rest."""
    parts: list[Html] = []
    for title, part in (
        ("", findings),
        ("Coverage", coverage),
        ("Categories", categories),
        ("Concepts", extremes),
        ("How captions begin", sayings),
        ("Agreement of picture and caption", agreement),
        ("Beside real images", beside_real),
        ("Pictures by category", sheets),
    ):
        made = optional(part, run)
        if made is None and part is findings:
            raise Missing("There is nothing to audit in this workdir yet.")
        if made is not None:
            parts.append(Html((tag("h3", title, class_="sub") if title else "") + made))
    return text(parts)
