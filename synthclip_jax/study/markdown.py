"""The findings of a study as Markdown tables, for a text that is written about it: `W/STUDY.md`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synthclip_jax.study import numbers

ENDING = ".md"  # behind the name of the study
MOST_COLUMNS = 8  # of metrics, side by side


def markdown(found: Mapping[str, Any]) -> str:
    """Claims, sizes that are worth the same, and every kind of cell; what a study does not have is left out.

    Args:
      found: what `STUDY.json` holds.
    """
    parts = [
        ("Claims", ("claim", "effect", "95%", "seeds", "verdict"), list(_claims(found))),
        ("Worth the same", ("pairs", "are worth, of", "pairs", "95%", "factor", "in"), list(_equal(found))),
        ("Every kind of cell", *_kinds(found)),
    ]
    return "\n".join(f"**{title}**\n\n{_table(head, rows)}" for title, head, rows in parts if rows)


def _claims(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for claim in found["claims"].values():
        points = numbers.is_share(claim["metric"])
        effect = "" if claim["effect"] is None else numbers.change(claim["effect"], points)
        verdict = f"**{claim['verdict']}**"
        yield claim["statement"], effect, numbers.changes(claim), str(claim["seeds"]), verdict


def _equal(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    curves = found["curves"]
    for line in found["equal_sizes"]:
        own, equal = curves[line["curve"]], line["equal"]
        beyond = ", extrapolated" if numbers.is_beyond(line) else ""
        yield (
            f"{line['size']:,} of {curves[line['of']]['title']}",
            own["title"],
            f"{numbers.size(equal['value'])}{beyond}",
            numbers.sizes(equal),
            numbers.size(line["factor"]["value"]),
            own["plot"],
        )


def _kinds(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each kind; where that were too many columns, a column for each kind."""
    factors, metrics = numbers.shown(found)
    if len(metrics) > MOST_COLUMNS:
        kinds = found["kinds"]
        named = (", ".join(numbers.factor(value) for value in kind["factors"].values()) for kind in kinds)
        return ("", *named), [
            (found["shown"][name], *(_value(kind["metrics"].get(name), name) for kind in kinds)) for name in metrics
        ]
    head = (*factors, *(found["shown"][name] for name in metrics), "runs")
    return head, [
        (
            *(numbers.factor(kind["factors"].get(name)) for name in factors),
            *(_value(kind["metrics"].get(name), name) for name in metrics),
            str(numbers.runs(kind)),
        )
        for kind in found["kinds"]
    ]


def _value(metric: Mapping[str, Any] | None, name: str) -> str:
    if metric is None:
        return ""
    value, interval = numbers.value(metric, numbers.is_share(name))
    return f"{value} ({interval})" if interval else value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
