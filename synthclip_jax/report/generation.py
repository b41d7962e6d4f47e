"""Sections on generation. Each takes the run and gives markup, or raises `Missing` with a sentence in its place."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthclip_jax.left_out import LeftOut
from synthclip_jax.report import measures, plots
from synthclip_jax.report.examples import Record, read_columns
from synthclip_jax.report.markup import Html, plural, tag, text, thumbnail
from synthclip_jax.report.missing import Missing, optional
from synthclip_jax.report.plots import Axis, Line, Mark
from synthclip_jax.report.workdir import SHEET, Run, Stage
from synthclip_jax.wording import duration
from synthclip_jax.workdir import generated

MOVERS = 10  # concepts shown that balancing thins most
CAPTIONS_READ = 200_000  # lengths are measured on at most about so many captions


def pipeline(run: Run) -> Html:
    """From concepts to pictures: how many there were at each step and what was turned away."""
    bank = optional(lambda: run.bank)
    captions, pictures = optional(run.stage, "captions"), optional(run.stage, "images")
    balance = optional(lambda: run.balance)
    if not (bank or captions or pictures):
        raise Missing("Nothing has been generated in this workdir: python -m gen --config=... --workdir=...")
    stages = []
    if bank:
        sources = [
            (name, count["new"] if isinstance(count, Mapping) else count) for name, count in bank["sources"].items()
        ]
        steps = [(f"from {name}", count) for name, count in sources]
        if sum(count for _, count in sources) > bank["count"]:
            steps.append(("kept: the most frequent", bank["count"]))
        stages.append(_stage("Concepts", bank["count"], "in the bank", steps, {}))
    else:
        stages.append(_absent_stage("Concepts"))
    if captions:
        asked = captions.plan.get("captions", captions.count + sum(captions.rejects.values()))
        steps = [("asked for", asked), ("accepted", captions.count)]
        if balance:
            steps += [
                ("unique", balance["unique"]),
                ("name a concept", balance["unique"] - balance["unmatched"]),
                (f"kept by balancing, t = {balance['t']:.6g}", balance["kept"]),
            ]
        what = "kept" if balance else captions.unfinished or "accepted"
        stages.append(_stage("Captions", steps[-1][1], what, steps, captions.rejects))
    else:
        stages.append(_absent_stage("Captions"))
    if pictures:
        planned = pictures.plan.get("pictures", pictures.count + sum(pictures.rejects.values()))
        steps = [("planned", planned), ("made", pictures.count)]
        what = pictures.unfinished or "in the dataset"
        stages.append(_stage("Pictures", pictures.count, what, steps, pictures.rejects))
    else:
        stages.append(_absent_stage("Pictures"))
    return Html(tag("div", stages, class_="stages") + _time_spent(run, captions, pictures))


def _stage(title: str, total: int, of_what: str, steps: Sequence[tuple[str, int]], rejects: Mapping[str, int]) -> Html:
    most = max([count for _, count in steps] or [1])
    return tag(
        "div",
        tag("h3", title),
        tag("p", tag("b", f"{total:,}"), f" {of_what}", class_="total"),
        (plots.bar_row(label, count, most) for label, count in steps),
        tag(
            "p",
            tag("b", f"{sum(rejects.values()):,} turned away: "),
            ", ".join(f"{reason} {count:,}" for reason, count in list(rejects.items())[:8]),
            class_="refused",
        )
        if rejects
        else None,
        class_="stage",
    )


def _absent_stage(title: str) -> Html:
    return tag("div", tag("h3", title), tag("p", "Nothing here yet.", class_="absent"), class_="stage")


def _time_spent(run: Run, captions: Stage | None, pictures: Stage | None) -> Html:
    parts = [
        ("writing captions", captions.seconds if captions else 0),
        ("drawing", pictures.seconds if pictures else 0),
    ]
    metrics = optional(lambda: run.metrics)
    if metrics and "seconds" in metrics[-1]:
        parts.append(("training", metrics[-1]["seconds"]))
    parts = [(name, seconds) for name, seconds in parts if seconds > 0]
    if len(parts) < 2:
        return Html("")
    total = sum(seconds for _, seconds in parts)
    return tag(
        "div",
        tag("h4", "Where the time went"),
        tag(
            "div",
            (
                tag("i", style=f"flex-grow:{seconds / total:.4f}", class_=f"part p{index}")
                for index, (_, seconds) in enumerate(parts)
            ),
            class_="share",
        ),
        tag(
            "p",
            (
                tag("span", f"{name} ", tag("b", duration(seconds)), class_=f"key p{index}")
                for index, (name, seconds) in enumerate(parts)
            ),
            class_="keys",
        ),
        class_="time",
    )


def concepts(run: Run) -> Html:
    """Counts before and after balancing, the keep-rate curve, and what balancing thinned most."""
    balance = run.balance
    before, after = run.concept_counts()
    never = int((before == 0).sum())
    notes = (
        f"A concept that {balance['t']:.6g} captions or fewer contain keeps all of them; the more frequent one is"
        " beyond that, the more of its captions go. "
        + (f"{plural(never, 'concept')} of {len(before):,} never came up in a caption." if never else "")
    )
    return Html(
        tag("p", notes, class_="note")
        + tag("div", _counts_plot(before, after, balance["t"]), _keep_plot(balance), class_="grid")
        + _movers(run, before, after)
    )


def _counts_plot(before: np.ndarray, after: np.ndarray, t: float) -> Html:
    lines = []
    for name, counts, style in (("before", before, "b"), ("after", after, "a")):
        ordered = np.sort(counts[counts > 0])[::-1].tolist()
        if ordered:
            lines.append(Line(name, *plots.thin(range(1, len(ordered) + 1), ordered, log=True), style))
    if not lines:
        raise Missing("No caption contains a concept.")
    most = max(max(line.y) for line in lines)
    near = t <= 10 * most  # a threshold far above every count keeps everything
    marks = [Mark(f"t = {t:.6g}", y=t)] if near else []
    ranks = max(max(line.x) for line in lines)
    x = Axis("concepts, most frequent first", 1, max(ranks * 1.1, 2), log=True)
    y = Axis("captions that contain it", 0.8, max(1.3 * most, 2, 1.3 * t if near else 0), log=True)
    return plots.line_plot("How often each concept occurs", x, y, lines, marks)


def _keep_plot(balance: Mapping[str, Any]) -> Html:
    curve = sorted(balance["keep_curve"], key=lambda point: point["t"])
    ts = [point["t"] for point in curve]
    kept = [point["kept"] / balance["unique"] for point in curve]
    tail = [point["tail_share"] for point in curve]
    low, high = plots.span(ts, log=True)
    x = Axis("threshold t", low, high, log=True)
    y = Axis("share", 0, 1.02, format=lambda value: f"{100 * value:.0f}%")
    lines = [Line("captions kept", ts, kept, "a dots"), Line("matches in the tail", ts, tail, "c")]
    return plots.line_plot("What a threshold keeps", x, y, lines, [Mark(f"t = {balance['t']:.6g}", x=balance["t"])])


def _movers(run: Run, before: np.ndarray, after: np.ndarray) -> Html:
    thinned = np.argsort(after - before, kind="stable")[:MOVERS].tolist()
    order = [index for index in thinned if before[index] > after[index]]
    if not order:
        return Html("")
    texts = measures.concepts(run).texts
    most = int(before.max())
    rows = (
        tag(
            "div",
            tag("span", texts[index], class_="what"),
            tag("span", f"{before[index]:,} → {after[index]:,}", class_="count"),
            tag("i", style=f"--w:{100 * before[index] / most:.2f}%;--v:{100 * after[index] / most:.2f}%"),
            class_="bar-row double",
        )
        for index in order
    )
    key = tag("p", tag("span", "captions kept", class_="key"), tag("span", "let go", class_="key b"), class_="keys")
    return Html(tag("h4", "Thinned most") + key + tag("div", rows, class_="columns"))


def captions(run: Run) -> Html:
    """Lengths of captions, and examples of rejected ones."""
    lengths, complete = _caption_words(run)
    stage = optional(run.stage, "captions")
    parts = [_length_plot(lengths)]
    if stage and (stage.rejects or stage.answers):
        examples = optional(_rejected_captions, run) or {}
        parts.append(_reject_panel(stage, examples))
    mean = f"{lengths.mean():.1f} words on average" if len(lengths) else "none"
    sample = "" if complete else ", measured on a sample"
    body = tag("p", f"Accepted captions have {mean}{sample}.", class_="note") + tag("div", parts, class_="grid")
    return Html(body)


def _caption_words(run: Run) -> tuple[np.ndarray, bool]:
    """Lengths of accepted captions in words, and whether they are all of them or a sample of the shards."""
    lengths: list[int] = []
    files = run.caption_files()
    step = 1
    for index, path in enumerate(files):
        if index % step:
            continue
        lengths += [len(caption.split()) for caption in read_columns(path, ["caption"])["caption"]]
        if index == 0 and lengths:
            step = max(1, len(files) * len(lengths) // CAPTIONS_READ)
    return np.array(lengths, np.int64), step == 1


def _rejected_captions(run: Run, per_reason: int = 3) -> dict[str, list[tuple[str, str]]]:
    """A few rejected answers by reason: (concept, text)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in run.caption_files(generated.REJECTS, "No rejects are recorded.")[:16]:
        columns = read_columns(path, ["reason", "concept", "text"])
        for reason, concept, answer in zip(*columns.values(), strict=True):
            if len(found.setdefault(reason, [])) < per_reason:
                found[reason].append((concept, answer))
    return found


def _shortened(answer: str, most: int = 240) -> str:
    answer = " ".join(answer.split())
    return answer if len(answer) <= most else f"{answer[:most].rstrip()}…"


def _length_plot(lengths: np.ndarray) -> Html:
    if not len(lengths):
        raise Missing("No caption was accepted.")
    high = int(np.quantile(lengths, 0.999)) + 1
    width = max(1, math.ceil(high / 40))
    edges = np.arange(int(lengths.min()), high + width, width)
    counts, edges = np.histogram(np.minimum(lengths, high), bins=np.append(edges, edges[-1] + width))
    bars = [(left - 0.5, left + width - 0.5, n) for left, n in zip(edges.tolist(), counts.tolist(), strict=False)]
    bars = bars[: max(index for index, bar in enumerate(bars) if bar[2]) + 1]
    x = Axis("words", bars[0][0] - 0.5, bars[-1][1] + 0.5)
    y = Axis("captions", 0, counts.max() * 1.06)
    return plots.bar_plot("Length of captions", x, y, bars)


def _reject_panel(stage: Stage, examples: Mapping[str, Sequence[tuple[str, str]]]) -> Html:
    """Reasons, of all answers where they were counted, else of the captions that were given up."""
    refused = {reason: count for reason, count in stage.answers.items() if reason != "accepted"} or stage.rejects
    total = sum(stage.answers.values()) or stage.count + sum(stage.rejects.values())
    given_up = sum(stage.rejects.values())
    items = (
        (
            tag("dt", reason),
            (
                tag("dd", tag("span", concept, class_="chip"), " ", tag("q", _shortened(answer)))
                for concept, answer in found
            ),
        )
        for reason, found in examples.items()
    )
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", "Why answers were turned away"),
            tag("span", f"{sum(refused.values()):,} of {total:,}", class_="unit"),
        ),
        (plots.bar_row(reason, count, max(refused.values()), "warn") for reason, count in list(refused.items())[:10]),
        tag("p", f"Asked again, {plural(given_up, 'caption')} had to be given up.", class_="refused")
        if stage.answers
        else None,
        tag("details", tag("summary", "Read some of them"), tag("dl", items, class_="rejected")) if examples else None,
        class_="plot",
    )


def pictures(run: Run) -> Html:
    """The contact sheet."""
    if not run.sample.records:
        raise Missing(f"The dataset holds no pictures that can be read ({run.sample.left_out}).")
    return text((account(run.sample.left_out), tag("div", map(figure, run.sample.records[:SHEET]), class_="sheet")))


def account(left_out: LeftOut) -> Html:
    """What is left out of the files that pictures are chosen from, a line for each cause."""
    return text(tag("p", f"{line}.", class_="note") for line in left_out.lines())


def figure(record: Record, note: str = "") -> Html:
    """One picture with its caption, and perhaps a note before that."""
    caption = highlighted(record.caption, record.concept)
    label = tag("b", f"{note} ") if note else None
    return tag("figure", thumbnail(record.image), tag("figcaption", label, caption), title=record.where)


def highlighted(caption: str, concept: str) -> Html:
    """The caption with its concept marked where it first stands."""
    at = caption.lower().find(concept.lower()) if concept else -1
    # A letter that changes its length with its case would shift what is found.
    if at < 0 or len(caption.lower()) != len(caption):
        return text(caption)
    end = at + len(concept)
    return text([caption[:at], tag("mark", caption[at:end]), caption[end:]])
