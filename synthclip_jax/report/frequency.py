"""Accuracy of classes against how often the captions named them, and against whether the concept bank has them."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from synthclip_jax.evals import concepts
from synthclip_jax.report.markup import Html, row, table, tag, text, with_interval
from synthclip_jax.report.plots import Axis, Line, line_plot, span


def frequency(
    class_names: Sequence[str],
    right: Sequence[Int[np.ndarray, " classes"]],
    count: Int[np.ndarray, " classes"],
    folders: Sequence[pathlib.Path],
    names: Sequence[str],
) -> Html:
    """A plot of all classes and a table by kind and by power of ten, of one checkpoint or of two.

    Args:
      right: for each checkpoint, how many pictures of each class it names.
      count: how many there are.
      folders: workdirs with concept bank and captions; names: what the checkpoints are called.
    """
    present = count > 0
    lines, rows, notes = [], [], []
    for folder, name, hits, style in zip(folders, names, right, ("a", "b")[: len(names)], strict=True):
        classes = concepts.of_run(folder, class_names)
        if not concepts.read_bank(folder):
            notes.append(f"{name}: no concept bank in its workdir.")
            continue
        for group in concepts.by_kind(classes, hits, count):
            rows.append((name, group))
        groups = concepts.by_frequency(classes, hits, count)
        rows += [(name, group) for group in groups]
        if not groups:
            notes.append(f"{name}: its captions are not in its workdir.")
            continue
        seen = np.array([each.seen for each in classes])[present]
        accuracy = (hits / np.maximum(count, 1))[present]
        lines.append(Line(name, (1 + seen).tolist(), (100 * accuracy).tolist(), f"{style} dots"))
        found = concepts.trend(seen, accuracy)
        if found:
            ends = [float(1 + seen.min()), float(1 + seen.max())]
            fitted = [100 * (found["start"] + found["slope"] * math.log10(end)) for end in ends]
            lines.append(Line(name, ends, fitted, style))
            notes.append(
                f"{name}: {100 * found['slope']:+.1f} points for ten times as many captions, rank correlation"
                f" {found['correlation']:+.2f}."
            )
    parts: list[Any] = [tag("p", note, class_="note") for note in notes]
    if lines:
        dots = [line for line in lines if "dots" in line.style]
        x = Axis("1 + captions that name the class", *span([v for line in dots for v in line.x], log=True), log=True)
        y = Axis("% of its pictures", -2.0, 102.0)
        plain = [dataclasses.replace(line, name=line.name if "dots" in line.style else "") for line in lines]
        title = "Each class: how often seen, how often right"
        parts.append(tag("div", _dots_only(title, x, y, plain), class_="one"))
    if rows:
        body = (
            row(
                name,
                group.name if group.name in concepts.KINDS else f"named in {group.name} captions",
                f"{group.classes:,}",
                f"{group.images:,}",
                with_interval(group.accuracy, group.low, group.high),
            )
            for name, group in rows
        )
        parts.append(table(("checkpoint", "classes", "how many", "pictures", "top-1"), body))
    return text(parts)


def _dots_only(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> Html:
    """Classes as single dots: lines of one point each, so that none is drawn between them."""
    split: list[Line] = []
    for line in lines:
        if "dots" in line.style:
            split += [Line(line.name, [a], [b], line.style) for a, b in zip(line.x, line.y, strict=True)]
        else:
            split.append(line)
    return line_plot(title, x, y, split)
