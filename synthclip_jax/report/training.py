"""The section on training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synthclip_jax.evals import origin
from synthclip_jax.evals.results import group
from synthclip_jax.report import plots
from synthclip_jax.report.markup import Html, percent, tag
from synthclip_jax.report.missing import optional
from synthclip_jax.report.plots import Axis, Line, Mark
from synthclip_jax.report.workdir import Run


def training(run: Run) -> Html:
    """Curves of a training run."""
    metrics = run.metrics
    config = optional(lambda: run.training)
    train = config["config"]["train"] if config else {}
    steps = [line["step"] for line in metrics]
    x = Axis("step", 0, max(steps))

    def series(key: str) -> tuple[list[float], list[float]]:
        pairs = [(line["step"], line[key]) for line in metrics if key in line and math.isfinite(line[key])]
        return [step for step, _ in pairs], [value for _, value in pairs]

    figures = [_loss_plot(x, *series("loss"), train)]
    at, scale = series("logit_scale")
    if at:
        limit = math.exp(train.get("logit_scale_max", math.inf))
        near = limit < 3 * max(scale)  # far from its limit, the curve itself is what there is to see
        # At least a tenth of its value across, so that a standing scale looks like one.
        y = Axis("1 / temperature", 0.95 * min(scale), 1.05 * (limit if near else max(scale)))
        marks = [Mark("largest allowed", y=limit)] if near else []
        figures.append(plots.line_plot("Logit scale", x, y, [Line("", *plots.thin(at, scale))], marks))
    at, rate = series("learning_rate")
    if at:
        y = Axis("", 0, max(rate) * 1.08 or 1)
        figures.append(plots.line_plot("Learning rate", x, y, [Line("", *plots.thin(at, rate))]))
    at, speed = series("examples_per_second")
    if at:
        y = Axis("pairs per second", 0, max(speed) * 1.1 or 1)
        figures.append(plots.line_plot("Speed", x, y, [Line("", *plots.thin(at, speed))]))
    accuracy = _accuracy_plot(run)
    return Html(tag("p", _training_note(metrics, train), class_="note") + tag("div", figures, accuracy, class_="grid"))


def _training_note(metrics: Sequence[Mapping[str, float]], train: Mapping[str, Any]) -> str:
    last = metrics[-1]
    note = f"The loss ended at {last['loss']:.3f}"
    if known := _knows_nothing(train):
        value, formula, why = known
        note += f". A model that knows nothing stays at {formula} = {value:.2f}: {why}"
    waits = [line["data_wait"] for line in metrics if "data_wait" in line]
    if waits:
        note += f". Waiting for data took {percent(sum(waits) / len(waits))} of the time"
    return note + "."


def _knows_nothing(train: Mapping[str, Any]) -> tuple[float, str, str] | None:
    """The loss of a model that cannot tell one pair from another: its value, its formula, and why."""
    batch = train.get("batch_size")
    if not batch or train.get("loss", "softmax") not in ("softmax", "sigmoid"):
        return None
    if train.get("loss", "softmax") == "softmax":
        why = "it cannot tell which of the captions in a batch belongs to a picture"
        return math.log(batch), f"ln({batch:,})", why
    # Of a batch's captions each is the right one with probability 1 / batch; its best is to say so of every pair.
    value = math.log(batch) + (batch - 1) * math.log(batch / max(batch - 1, 1))
    why = "it says of every picture and caption that they are a pair with probability 1 / batch"
    return value, f"ln({batch:,}) + ({batch:,} - 1) ln({batch:,} / {batch - 1:,})", why


def _loss_plot(x: Axis, steps: Sequence[float], losses: Sequence[float], train: Mapping[str, Any]) -> Html:
    known = _knows_nothing(train)
    high = max(*losses, known[0] if known else 0.0)
    sigmoid = train.get("loss") == "sigmoid"
    y = Axis(
        "sigmoid, summed over a picture's captions" if sigmoid else "contrastive, mean of both directions",
        0,
        high * 1.12,
    )
    lines = [Line("", *plots.thin(steps, losses), "a faint" if len(losses) > 40 else "a")]
    if len(losses) > 40:
        lines.append(Line("", *plots.thin(steps, plots.smooth(losses, len(losses) // 24)), "a"))
    marks = (
        [Mark("knows nothing" if sigmoid else f"knows nothing: ln {train['batch_size']:,}", y=known[0])]
        if known
        else []
    )
    return plots.line_plot("Loss", x, y, lines, marks)


def _accuracy_plot(run: Run) -> Html | None:
    found = optional(lambda: run.zeroshot) or []
    if len(found) < 2:
        return None
    points: dict[str, list[tuple[int, float]]] = {}
    for result in found:
        for name, values in group(result["metrics"], "zeroshot").items():
            # Those of other weights are named beside the numbers; a curve of this training has no place for them.
            if "acc1" in values and origin.weights_note(run.folder, result, name) in ("", origin.OLD_VERSION):
                points.setdefault(name, []).append((result["step"], values["acc1"]))
    if not points:
        return None
    x = Axis("step", 0, found[-1]["step"])
    y = Axis("top-1", 0, max(value for line in points.values() for _, value in line) * 1.1 or 1, format=_percent_tick)
    lines = [
        Line(name, [step for step, _ in line], [value for _, value in line], f"{'abc'[index % 3]} dots")
        for index, (name, line) in enumerate(list(points.items())[:3])
    ]
    return plots.line_plot("Zero-shot accuracy on the way", x, y, lines)


def _percent_tick(value: float) -> str:
    return f"{100 * value:.3g}%"
