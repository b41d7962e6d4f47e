"""A page about weights between those of two runs: each metric over alpha."""

from collections.abc import Mapping, Sequence

from synthclip_jax.report.document import whole_page
from synthclip_jax.report.markup import Html, row, table, tag
from synthclip_jax.report.plots import Axis, Line, Mark, line_plot, span


def page(
    names: Sequence[str], found: Mapping[float, Mapping[str, float]], curves: Sequence[str], metric: str, best: float
) -> str:
    """The page as text.

    Args:
      names: of the two runs.
      found: metrics `SUITE/NAME/METRIC` by alpha.
      curves: which of them are drawn.
      metric, best: the one that an alpha was chosen by, and that alpha.
    """
    drawn = [curve for curve in curves if all(curve in values for values in found.values())]
    about = (
        f"The weights are (1 - alpha) of {names[0]} and alpha of {names[1]}. {metric} is largest at alpha {best:g}; it"
        " was chosen on these test sets, so that its number there is no estimate for others."
    )
    intro = tag("header", tag("h1", "Between two checkpoints"), tag("p", about, class_="note"))
    rows = (row(f"{alpha:g}", *(f"{values[curve]:.4f}" for curve in drawn)) for alpha, values in found.items())
    plots = tag("div", (_plot(curve, found, best) for curve in drawn), class_="side")
    body = tag("main", intro, tag("section", plots), tag("section", table(("alpha", *drawn), rows)))
    return whole_page(f"{names[0]} and {names[1]}: interpolated", body)


def _plot(curve: str, found: Mapping[float, Mapping[str, float]], best: float) -> Html:
    alphas, values = list(found), [metrics[curve] for metrics in found.values()]
    x = Axis("alpha", *(span(alphas) if len(alphas) == 1 else (min(alphas), max(alphas))))
    y = Axis("", *span(values))
    return line_plot(curve, x, y, [Line(curve, alphas, values, "a dots")], [Mark(f"{best:g}", x=best)])
