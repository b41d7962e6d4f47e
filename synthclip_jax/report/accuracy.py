"""Sections on accuracy: the numbers, and the classes behind them."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from synthclip_jax.evals import intervals
from synthclip_jax.evals.results import group
from synthclip_jax.report.bars import track
from synthclip_jax.report.calibration import calibration
from synthclip_jax.report.frequency import frequency
from synthclip_jax.report.markup import Html, percent, plural, row, table, tag, text, thumbnail, with_interval
from synthclip_jax.report.missing import UNREADABLE, Missing
from synthclip_jax.report.tasks import tasks
from synthclip_jax.report.workdir import Run

CLASSES = 6  # best and worst classes shown
PICTURES = 4  # of each class
CONFUSIONS = 8
PANEL_OPEN = 2  # test sets whose classes are unfolded from the start


def zeroshot(run: Run) -> Html:
    """Accuracy with intervals beside chance, as bars and as a table."""
    result = run.zeroshot[-1]
    grouped = group(result["metrics"], "zeroshot")
    described = result.get("datasets", {})
    rows = []
    for name, values in grouped.items():
        tracks = []
        for metric, label, chance in (("acc1", "top-1", "chance"), ("acc5", "top-5", "chance5")):
            if metric in values:
                tracks.append(track(label, values, metric, values.get(chance, 0.0)))
        about = f"{values['classes']:,.0f} classes, {plural(int(values['n']), 'picture')}"
        if values.get("skipped"):
            about += f", {values['skipped']:,.0f} unreadable"
        prompts = described.get(name, {}).get("prompts", [])
        rows.append(
            tag(
                "div",
                tag("div", tag("b", name), tag("small", about), class_="who"),
                tag("div", tracks, class_="tracks"),
                tag("small", "prompts such as ", tag("q", prompts[0]), f", {len(prompts)} in all", class_="prompt")
                if prompts
                else None,
                class_="forest-row",
            )
        )
    columns = ("test set", "classes", "pictures", "top-1", "top-5", "mean per class", "chance", "calibration error")
    return Html(
        text([tag("p", note, class_="absent") for note in run.result_notes("zeroshot")])
        + tag(
            "p",
            f"After step {result['step']:,}. A picture belongs to the class whose prompts it is closest to; no"
            " classifier was trained. Solid bars are 95% intervals, red lines are chance.",
            class_="note",
        )
        + tag("div", rows, class_="forest")
        + table(columns, (_table_row(name, values) for name, values in grouped.items()))
        + calibration(run, result)
        + tasks(run, result["step"])
    )


def _table_row(name: str, values: Mapping[str, float]) -> Html:
    def cell(metric: str) -> str:
        if metric not in values:
            return "–"
        return with_interval(values[metric], values[f"{metric}_low"], values[f"{metric}_high"])

    error = percent(values["ece"]) if "ece" in values else "–"
    shares = map(cell, ("acc1", "acc5", "mean_per_class_recall"))
    return row(name, f"{values['classes']:,.0f}", f"{values['n']:,.0f}", *shares, percent(values["chance"], 2), error)


def classes(run: Run) -> Html:
    """Best and worst classes of each test set, with pictures and what they were taken for."""
    result = run.zeroshot[-1]
    panels = []
    for index, name in enumerate(group(result["metrics"], "zeroshot")):
        try:
            panel = _class_panel(run, result, name)
        except (Missing, *UNREADABLE) as missing:  # the other test sets are not to blame
            panel = tag("p", str(missing), class_="absent")
        panels.append(tag("details", tag("summary", name), panel, open=index < PANEL_OPEN, class_="panel"))
    return text(panels)


def _class_panel(run: Run, result: Mapping[str, Any], name: str) -> Html:
    detail = run.detail(result, name)
    names, labels, top = detail["class_names"].tolist(), detail["labels"], detail["top"]
    first = top[:, 0] == labels
    near = (top == labels[:, None]).any(axis=1)
    right, count = intervals.per_class(top[:, 0], labels, len(names))
    close = np.bincount(labels[near], minlength=len(names))
    present = [index for index in range(len(names)) if count[index]]
    shown = min(CLASSES, len(present) // 2)
    # How far ahead the guess was settles ties: the surest first, be they right or wrong.
    ahead = np.bincount(labels, detail["scores"][:, 0] - detail["scores"][:, 1], len(names)) / np.maximum(count, 1)
    named = [c for c in present if right[c]]
    best = sorted(named, key=lambda c: (-right[c] / count[c], -close[c] / count[c], -ahead[c]))[:shown]
    worst = sorted(present, key=lambda c: (right[c] / count[c], close[c] / count[c], -ahead[c]))[:shown]
    picked = {c: _pick(labels, first, c, right_first=c in best) for c in (*best, *worst)}
    keys = {str(detail["keys"][place]) for places in picked.values() for place in places}
    images, note = pictures_of(run, result, name, keys)

    def card(c: int) -> Html:
        cells = []
        for place in picked[c]:
            verdict, label = ("right", "✓") if first[place] else ("wrong", names[top[place, 0]])
            picture = thumbnail(images.get(str(detail["keys"][place])))
            cells.append(tag("figure", picture, tag("figcaption", label), class_=verdict))
        share = right[c] / count[c]
        return tag(
            "div",
            tag("p", tag("b", names[c]), tag("span", f"{right[c]} of {count[c]}"), class_="head"),
            tag("i", style=f"--w:{100 * share:.1f}%", class_="meter"),
            tag("div", cells, class_="four"),
            class_="class-card",
        )

    confused = (
        tag("li", tag("b", names[a]), " taken for ", tag("b", names[b]), tag("span", f"{n} of {count[a]}"))
        for (a, b), n in confusions(labels, top[:, 0]).most_common(CONFUSIONS)
        if n > 1
    )
    return text(
        [
            note,
            tag("h4", "Named best"),
            tag("div", (card(c) for c in best), class_="cards")
            if best
            else tag("p", "No class at all.", class_="absent"),
            tag("h4", "Named worst, and what they were taken for"),
            tag("div", (card(c) for c in worst), class_="cards"),
            tag("h4", "Most frequent confusions"),
            tag("ul", confused, class_="confusions"),
            tag("h4", "By how often it was seen"),
            frequency(names, [right], count, [run.folder], [f"step {result['step']:,}"]),
        ]
    )


def confusions(labels: Int[np.ndarray, " n"], guesses: Int[np.ndarray, " n"]) -> collections.Counter[tuple[int, int]]:
    """How often each class was taken for each other one."""
    wrong = labels != guesses
    return collections.Counter(zip(labels[wrong].tolist(), guesses[wrong].tolist(), strict=True))


def pictures_of(
    run: Run, result: Mapping[str, Any], name: str, keys: set[str]
) -> tuple[Mapping[str, bytes], Html | None]:
    """Pictures of a test set by their keys, or why they cannot be shown."""
    try:
        return run.test_pictures(result, name, keys), None
    except (Missing, *UNREADABLE) as error:
        return {}, tag("p", f"The pictures themselves cannot be shown: {error}", class_="absent")


def _pick(labels: np.ndarray, first: np.ndarray, label: int, right_first: bool) -> list[int]:
    rows = np.flatnonzero(labels == label).tolist()
    return sorted(rows, key=lambda row: bool(first[row]) != right_first)[:PICTURES]
