"""The top of the page: what the run is called, its story in a sentence, its figures, and a strip of pictures."""

from typing import Any

from synthclip_jax.evals import origin
from synthclip_jax.evals.results import group
from synthclip_jax.report.markup import Html, percent, plural, tag, text, thumbnail
from synthclip_jax.report.missing import optional
from synthclip_jax.report.workdir import SHEET, Run, Stage
from synthclip_jax.wording import duration


def masthead(run: Run) -> Html:
    """Name, a sentence that tells the whole story, the figures, and a strip of pictures."""
    training = optional(lambda: run.training)
    bank = optional(lambda: run.bank)
    balance = optional(lambda: run.balance)
    pictures = optional(run.stage, "images")
    metrics = optional(lambda: run.metrics)
    zeroshot = optional(lambda: run.zeroshot)
    facts: list[tuple[str, str, str]] = []
    if bank:
        facts.append((f"{bank['count']:,}", "concepts", ""))
    if balance:
        facts.append((f"{balance['kept']:,}", "captions", f"of {balance['pool']:,} written"))
    if pictures:
        facts.append((f"{pictures.count:,}", "pictures", ""))
    if training:
        vision = training["config"]["model"]["vision"]
        size = training["config"]["data"]["image_size"]
        facts.append((f"{vision['layers']}×{vision['width']}", f"ViT/{vision['patch_size']}", f"at {size} px"))
    if metrics:
        last = metrics[-1]
        facts.append((f"{last['step']:,}", "steps", f"{last['epoch']:.3g} epochs" if "epoch" in last else ""))
        if "seconds" in last:
            facts.append((duration(last["seconds"]), "of training", ""))
    strip = optional(lambda: run.sample.records[SHEET:])
    return tag(
        "header",
        tag("p", "Run report", class_="eyebrow"),
        tag("h1", run_name(run)),
        tag("p", _lead(run, bank, balance, pictures, metrics, zeroshot), class_="lead"),
        tag(
            "dl",
            (
                tag("div", tag("dt", label, tag("small", note) if note else None), tag("dd", value))
                for value, label, note in facts
            ),
            class_="facts",
        )
        if facts
        else None,
        tag("div", (thumbnail(record.image) for record in strip), class_="strip", aria_hidden="true")
        if strip
        else None,
    )


def run_name(run: Run) -> str:
    """What the run is called."""
    training = optional(lambda: run.training)
    provenance = optional(lambda: run.provenance)
    return training["config"]["name"] if training else provenance["name"] if provenance else run.folder.resolve().name


def _lead(run: Run, bank: Any, balance: Any, pictures: Stage | None, metrics: Any, zeroshot: Any) -> Html:
    parts: list[Any] = []
    if pictures and balance and bank:
        parts.append(
            f"{plural(pictures.count, 'picture')} drawn by software from {plural(balance['kept'], 'caption')} that a"
            f" language model wrote about {plural(bank['count'], 'concept')}. "
        )
    elif bank:
        parts.append(f"A bank of {plural(bank['count'], 'concept')}, and generation still to finish. ")
    if metrics:
        time = f" in {duration(metrics[-1]['seconds'])}" if "seconds" in metrics[-1] else ""
        parts.append(f"A CLIP model learned from them for {plural(metrics[-1]['step'], 'step')}{time}. ")
    if zeroshot:
        name, values = next(iter(group(zeroshot[-1]["metrics"], "zeroshot").items()))  # the config's first
        parts += [
            "Shown ",
            tag("b", name),
            f", it names {percent(values['acc1'])} of {values['n']:,.0f} pictures rightly at first guess",
            f" and {percent(values['acc5'])} within five" if "acc5" in values else "",
            f", where chance would give {percent(values['chance'])}",
            f" ({note})." if (note := origin.weights_note(run.folder, zeroshot[-1], name)) else ".",
        ]
    return text(parts or "This workdir is still empty: the pages fill up as the pipeline runs.")
