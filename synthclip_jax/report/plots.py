"""Small plots as inline SVG. Colours, type and grid come from the page's style sheet, so they follow light and dark.

A plot is drawn on a canvas of 480 units across and scales with its column; type is set for that.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from synthclip_jax.report.markup import Html, tag

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
POINTS = 240  # most points drawn of one line


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: what it is called (empty: the title says it), its range, and whether it is logarithmic."""

    label: str
    low: float
    high: float
    log: bool = False
    format: Callable[[float], str] | None = None

    def place(self, value: float) -> float:
        """Where a value lies, from 0 (low) to 1 (high)."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values, some five of them."""
        return log_ticks(self.low, self.high) if self.log else round_ticks(self.low, self.high)

    def show(self, value: float) -> str:
        """A value's text."""
        return (self.format or short)(value)

    def labels(self) -> list[tuple[float, str]]:
        """Ticks with their texts, which differ from each other."""
        ticks = self.ticks()
        for digits in range(3, 10):
            texts = [self.format(tick) if self.format else short(tick, digits) for tick in ticks]
            if self.format or len(set(texts)) == len(texts):
                break
        return list(zip(ticks, texts, strict=True))


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plot. `style` is a class of the style sheet: `a` to `e`, with ` faint`, ` dots`, ` dots
    loose` (without a line) or ` whisker` added."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "a"


@dataclasses.dataclass(frozen=True)
class Band:
    """What lies between two lines over the same `x`: an interval. `style` as a line's."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    style: str = "a"


@dataclasses.dataclass(frozen=True)
class Mark:
    """A straight line across the plot at one value of `x` or of `y`, with its name."""

    name: str
    x: float | None = None
    y: float | None = None


def short(value: float, digits: int = 3) -> str:
    """A number as an axis shows it: `0`, `12`, `3.5k`, `2M`, `2.5e-4`."""
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if magnitude < 1e-2:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if magnitude >= size:
            return f"{value / size:.{digits}g}{letter}"
    return f"{value:.{digits}g}"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten inside a range, about `count` of them."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten inside a range; with 2 and 5 between them if they are few, and every second if they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def inside(values):
        return [value for value in values if low * 0.999 <= value <= high * 1.001]

    ticks = inside(10.0**power for power in powers)
    if len(ticks) < 3:
        return inside(m * 10.0**power for power in powers for m in (1, 2, 5))
    return ticks[:: math.ceil(len(ticks) / most)]


def span(values: Sequence[float], log: bool = False, pad: float = 0.06) -> tuple[float, float]:
    """A range around values, a little wider than they are."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** pad if high > low else 2.0
        return low / factor, high * factor
    extra = (high - low) * pad or abs(high) * 0.1 or 1.0
    return low - extra, high + extra


def thin(x: Sequence[float], y: Sequence[float], log: bool = False) -> tuple[list[float], list[float]]:
    """At most POINTS of a line's points, evenly spread (over the logarithm of their number if `log`), ends kept."""
    count = len(x)
    if count <= POINTS:
        return list(x), list(y)
    places = (index / (POINTS - 1) for index in range(POINTS))
    chosen = sorted({round(count**p) - 1 if log else round((count - 1) * p) for p in places})
    return [x[index] for index in chosen], [y[index] for index in chosen]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the `window` values around each."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = ((max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values)))
    return [(sums[high] - sums[low]) / (high - low) for low, high in ends]


def line_plot(
    title: str, x: Axis, y: Axis, lines: Sequence[Line], marks: Sequence[Mark] = (), bands: Sequence[Band] = ()
) -> Html:
    """Lines on a grid, with a key above if there is more than one name."""
    body = [_frame(x, y)]
    for band in bands:
        edge = [*zip(band.x, band.low, strict=True), *reversed([*zip(band.x, band.high, strict=True)])]
        path = "M" + "L".join(f"{_n(_px(x, a))} {_n(_py(y, b))}" for a, b in edge) + "Z"
        body.append(tag("path", d=path, class_=f"band {band.style}"))
    for mark in marks:
        body.append(_mark(mark, x, y))
    for line in lines:
        points = [(_px(x, a), _py(y, b)) for a, b in zip(line.x, line.y, strict=True)]
        if "dots" in line.style:
            body += [tag("circle", cx=_n(a), cy=_n(b), r=3, class_=f"dot {line.style}") for a, b in points]
        if len(points) > 1 and "loose" not in line.style:
            path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in points)
            body.append(tag("path", d=path, class_=f"line {line.style}"))
        elif points and "dots" not in line.style:
            body.append(tag("circle", cx=_n(points[0][0]), cy=_n(points[0][1]), r=3.5, class_=f"dot {line.style}"))
    named = {line.name: line.style for line in lines if line.name}
    return _figure(title, y.label, body, named if len(named) > 1 else {})


def bar_plot(title: str, x: Axis, y: Axis, bars: Sequence[tuple[float, float, float]]) -> Html:
    """A histogram. Bars: (from, to, height)."""
    body = [_frame(x, y)]
    for left, right, height in bars:
        a, b, top = _px(x, left), _px(x, right), _py(y, height)
        body.append(
            tag(
                "rect",
                tag("title", f"{x.show(left)}: {height:,.0f}"),
                x=_n(a + 0.75),
                y=_n(top),
                width=_n(max(b - a - 1.5, 0.75)),
                height=_n(max(HEIGHT - BOTTOM - top, 0)),
                class_="bar a",
            )
        )
    return _figure(title, y.label, body, {})


def bar_row(label: Any, count: float, most: float, style: str = "") -> Html:
    """A name, a bar and a number."""
    width = f"--w:{100 * count / max(most, 1e-9):.2f}%"
    return tag(
        "div",
        tag("span", label, class_="what"),
        tag("span", f"{count:,}", class_="count"),
        tag("i", style=width),
        class_=f"bar-row {style}".strip(),
    )


def _figure(title: str, unit: str, body: list[Html], names: dict[str, str]) -> Html:
    key = tag("span", (tag("span", name, class_=f"key {style}") for name, style in names.items()), class_="keys")
    return tag(
        "figure",
        tag("figcaption", tag("b", title), tag("span", unit, class_="unit") if unit else None, key if names else None),
        tag("svg", body, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title),
        class_="plot",
    )


def _frame(x: Axis, y: Axis) -> Html:
    bottom, parts = HEIGHT - BOTTOM, []
    for value, label in y.labels():
        at = _n(_py(y, value))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", label, x=LEFT - 8, y=at, class_="tick y"))
    for value, label in x.labels():
        at = _n(_px(x, value))
        parts.append(tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="notch"))
        parts.append(tag("text", label, x=at, y=bottom + 17, class_="tick x"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="base"))
    parts.append(tag("text", x.label, x=WIDTH - RIGHT, y=HEIGHT - 5, class_="label end"))
    return Html("".join(parts))


def _mark(mark: Mark, x: Axis, y: Axis) -> Html:
    if mark.y is not None:
        at = _py(y, mark.y)
        above = at - 5 if at > TOP + 30 else at + 13
        line = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(at), y2=_n(at), class_="mark")
        return Html(line + tag("text", mark.name, x=WIDTH - RIGHT - 2, y=_n(above), class_="label end mark"))
    if mark.x is None:
        return Html("")
    at = _px(x, mark.x)
    left = at > (WIDTH + LEFT) / 2
    line = tag("line", x1=_n(at), x2=_n(at), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")
    place = {"x": _n(at - 6 if left else at + 6), "y": HEIGHT - BOTTOM - 8}
    return Html(line + tag("text", mark.name, class_=f"label mark{' end' if left else ''}", **place))


def _px(axis: Axis, value: float) -> float:
    return LEFT + min(max(axis.place(value), -0.01), 1.01) * (WIDTH - LEFT - RIGHT)


def _py(axis: Axis, value: float) -> float:
    return TOP + (1 - min(max(axis.place(value), -0.01), 1.01)) * (HEIGHT - TOP - BOTTOM)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
