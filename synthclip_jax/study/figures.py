"""The figures of a study: metric over size with fitted laws and intervals, the same of others, one metric over another.

All are drawn from what `STUDY.json` holds, as inline SVG (`synthclip_jax.report.plots`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synthclip_jax.report.markup import Html, percent, tag, text
from synthclip_jax.report.plots import Axis, Band, Line, line_plot, short, span

STYLES = "abcde"


def style(number: int) -> str:
    """The colour of the nth line; after the last one they begin again."""
    return STYLES[number % len(STYLES)]


def curve_plots(found: Mapping[str, Any]) -> list[Html]:
    """The study's plots, each of the curves that belong in it and have points."""
    plots: dict[str, list[Mapping[str, Any]]] = {}
    for curve in found["curves"].values():
        if curve["points"]:
            plots.setdefault(curve["plot"], []).append(curve)
    return [_curves(title, curves) for title, curves in plots.items()]


def beside_plot(beside: Mapping[str, Any]) -> Html:
    """The figure of others."""
    series = [
        (name, [size for size, _ in points], [value for _, value in points])
        for name, points in beside["series"].items()
    ]
    x, y = _axes([size for _, sizes, _ in series for size in sizes], [v for *_, values in series for v in values])
    lines = [Line(name, sizes, values, f"{style(n)} dots") for n, (name, sizes, values) in enumerate(series)]
    plot = line_plot(beside["title"], x, y, lines)
    return text((plot, tag("small", f"{beside['metric']}. {beside['source']}.")))


def scatter_plots(found: Mapping[str, Any]) -> Iterator[Html]:
    """One metric over another, for each that the study asks for and that two kinds of cells have."""
    for scatter in found["scatters"]:
        groups: dict[str, list[tuple[float, float]]] = {}
        for kind in found["kinds"]:
            metrics = kind["metrics"]
            if scatter["x"] in metrics and scatter["y"] in metrics:
                point = metrics[scatter["x"]]["value"], metrics[scatter["y"]]["value"]
                groups.setdefault(str(kind["factors"].get(scatter["by"], "")), []).append(point)
        points = [point for group in groups.values() for point in group]
        if len(points) > 1:
            x = Axis(found["shown"].get(scatter["x"], scatter["x"]), *span([a for a, _ in points]))
            label = found["shown"].get(scatter["y"], scatter["y"])
            y = Axis(label, *span([b for _, b in points]), format=_percent)
            lines = [
                Line(name, [a for a, _ in group], [b for _, b in group], f"{style(n)} dots loose")
                for n, (name, group) in enumerate(groups.items())
            ]
            yield line_plot(scatter["title"], x, y, lines)


def _curves(title: str, curves: Sequence[Mapping[str, Any]]) -> Html:
    points = [point for curve in curves for point in curve["points"]]
    ends = [point[end] for point in points for end in ("value", "low", "high") if point[end] is not None]
    x, y = _axes([point["size"] for point in points], ends)
    lines, bands = [], []
    for number, curve in enumerate(curves):
        colour = style(number)
        for point in curve["points"]:
            if point["low"] is not None:
                lines.append(Line("", [point["size"]] * 2, [point["low"], point["high"]], f"{colour} whisker"))
        sizes, values = ([point[key] for point in curve["points"]] for key in ("size", "value"))
        lines.append(Line(curve["title"], sizes, values, f"{colour} dots loose"))
        if law := curve.get("line"):
            size, value, low, high = zip(*law, strict=True)
            bands.append(Band(size, low, high, colour))
            lines.append(Line("", size, value, colour))
    return line_plot(title, x, y, lines, bands=bands)


def _axes(sizes: Sequence[float], values: Sequence[float]) -> tuple[Axis, Axis]:
    low, high = span(values)
    return (
        Axis("pairs", *span(sizes, log=True), log=True, format=short),
        Axis("", max(low, 0.0), min(high, 1.0), format=_percent),
    )


def _percent(value: float) -> str:
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)
