"""A bar for a share: with its interval, and the mark of chance."""

from collections.abc import Mapping

from synthclip_jax.report.markup import Html, percent, tag


def track(label: str, values: Mapping[str, float], metric: str, chance: float) -> Html:
    """A bar of one metric with its interval and chance."""
    value, low, high = values[metric], values[f"{metric}_low"], values[f"{metric}_high"]
    interval = f"{percent(value)}, 95% interval {percent(low)} to {percent(high)}, chance {percent(chance)}"
    return tag(
        "div",
        tag("span", label, class_="k"),
        tag(
            "span",
            tag("i", class_="fill", style=f"width:{100 * value:.2f}%"),
            tag("i", class_="ci", style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"),
            tag("i", class_="chance", style=f"left:{100 * chance:.2f}%"),
            class_="scale",
            title=interval,
        ),
        tag("span", percent(value), class_="v"),
        class_="track",
    )
