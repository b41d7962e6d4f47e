"""Numbers of a study in words: as its page and its Markdown tables show them."""

from collections.abc import Mapping
from typing import Any

from synthclip_jax.report.markup import percent
from synthclip_jax.report.plots import short

SHARES = (
    "zeroshot/", "retrieval/", "corruptions/", "linear_probe/", "fewshot/", "mean/", "data/coverage", "delta_mtl/"
)  # fmt: skip


def is_share(metric: str) -> bool:
    """Whether a metric is said in percent."""
    return metric.startswith(SHARES)


def change(value: float, points: bool) -> str:
    """A difference with its sign, in percentage points or as it is."""
    return f"{100 * value:+.1f}" if points else f"{value:+.3f}"


def changes(claim: Mapping[str, Any]) -> str:
    """The interval of a claim's effect; empty where there is none."""
    points = is_share(claim["metric"])
    return "" if claim["low"] is None else f"{change(claim['low'], points)} to {change(claim['high'], points)}"


def factor(value: Any) -> str:
    """A factor of a cell; empty where the cell has none."""
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def value(metric: Mapping[str, Any], share: bool) -> tuple[str, str]:
    """A mean and its interval, which is empty where there is none."""
    show = percent if share else "{:.3f}".format
    return show(metric["value"]), "" if metric["low"] is None else f"{show(metric['low'])} to {show(metric['high'])}"


def size(number: float | None) -> str:
    """With three digits: more are not known."""
    return "none is enough" if number is None else f"{float(f'{number:.3g}'):,g}" if number < 1e6 else short(number)


def sizes(bounds: Mapping[str, float | None]) -> str:
    """The interval of a size; empty where there is none."""
    if bounds["low"] is None:
        return ""
    return f"{size(bounds['low'])} to {'∞' if bounds['high'] is None else size(bounds['high'])}"


def is_beyond(line: Mapping[str, Any]) -> bool:
    """Whether a size that is worth the same lies outside of what was measured."""
    return line["extrapolated"] and line["equal"]["value"] is not None


def shown(found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Factors and metrics that are columns of the table of all kinds of cells."""
    kinds = found["kinds"]
    factors = list(dict.fromkeys(name for kind in kinds for name in kind["factors"]))
    return factors, [name for name in found["shown"] if any(name in kind["metrics"] for kind in kinds)]


def runs(kind: Mapping[str, Any]) -> int:
    """Of how many cells the numbers of a kind are the means."""
    return max(metric["runs"] for metric in kind["metrics"].values())
