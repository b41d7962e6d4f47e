"""How sure the model is of its zero-shot answers, beside how often it is right."""

from collections.abc import Mapping
from typing import Any

from synthclip_jax.evals.calibration import BINS, reliability
from synthclip_jax.evals.results import group
from synthclip_jax.report.markup import Html, percent, row, table, tag, text
from synthclip_jax.report.missing import UNREADABLE, Missing
from synthclip_jax.report.workdir import Run


def calibration(run: Run, result: Mapping[str, Any]) -> Html:
    """A reliability table for each test set, folded; nothing where results have no confidences."""
    folds = []
    for name, values in group(result["metrics"], "zeroshot").items():
        if "ece" not in values:
            continue
        summary = tag("summary", f"{name}: calibration error {percent(values['ece'])}")
        try:
            inside = _table(run, result, name)
        except (Missing, *UNREADABLE) as missing:  # the other test sets are not to blame
            inside = tag("p", str(missing), class_="absent")
        folds.append(tag("details", summary, inside, class_="panel"))
    if not folds:
        return Html("")
    about = (
        "The model's own probability of its answer, and how often the answer is right. The error is the mean difference"
        f" of the two over images in {BINS} bins."
    )
    return text([tag("h4", "Calibration"), tag("p", about, class_="note"), *folds])


def _table(run: Run, result: Mapping[str, Any], name: str) -> Html:
    detail = run.detail(result, name)
    if "confidence" not in detail:
        raise Missing("The single probabilities are not there.")
    found = reliability(detail["confidence"], detail["top"][:, 0] == detail["labels"])
    rows = (
        row(f"{percent(place / BINS, 0)} to {percent((place + 1) / BINS, 0)}", f"{n:,}", percent(sure), percent(right))
        for place, (n, sure, right) in enumerate(zip(*found, strict=True))
        if n
    )
    return table(("probability", "pictures", "mean probability", "right"), rows)
