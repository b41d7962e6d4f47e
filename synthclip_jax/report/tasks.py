"""What else the checkpoint can do: linear probes, few-shot, retrieval, the shape of its space, and the paper's numbers
beside them where the test set is one of the paper's."""

from collections.abc import Mapping
from typing import Any

from synthclip_jax.evals import paper_tables, results
from synthclip_jax.report.markup import Html, percent, plural, tag, text
from synthclip_jax.report.workdir import Run

PAPERS = "clip_cc12m"  # whose numbers stand beside ours

# Of each suite: its heading, what it is, and (metric, chance, label, what the table calls it).
SUITES: dict[str, tuple[str, str, tuple[tuple[str, str, str, str], ...]]] = {
    "linear_probe": (
        "Linear probe",
        "A linear classifier fitted on the frozen image tower.",
        (("acc1", "chance", "top-1", "linear probe, top-1"),),
    ),
    "fewshot": (
        "Few-shot",
        "Five pictures of each class to learn from: among 5 classes drawn at random, and among all of them (ridge"
        " regression).",
        (
            ("acc1", "chance", "5-way", "few-shot, 5-way 5-shot"),
            ("ridge5_acc1", "ridge5_acc1_chance", "all", "few-shot, 5 of each of all classes"),
        ),
    ),
    "retrieval": (
        "Retrieval",
        "The picture of a caption among all pictures, and a caption of a picture among all captions.",
        tuple(
            (f"{query}_r@{k}", f"{query}_r@{k}_chance", f"{short} @{k}", f"{query} retrieval, recall at {k}")
            for query, short in (("image", "image"), ("text", "text"))
            for k in (1, 5)
        ),
    ),
}


def tasks(run: Run, step: int) -> Html:
    """Rows of bars for each suite that was evaluated at this step, and one table of all; nothing where none was."""
    parts, lines = [], []
    for suite, (title, about, measures) in SUITES.items():
        found = [result for result in results.read_results(run.folder, suite, []) if result["step"] == step]
        notes = [tag("p", note, class_="absent") for note in run.result_notes(suite, step)]
        rows = []
        for name, values in results.group(found[-1]["metrics"], suite).items() if found else ():
            shown = [measure for measure in measures if measure[0] in values]
            tracks = [_track(label, values, metric, values.get(chance, 0.0)) for metric, chance, label, _ in shown]
            learned = found[-1].get("datasets", {}).get(name, {}).get("train", "")
            cut = ", of one split divided by class" if learned.startswith("two thirds") else ""
            who = tag("div", tag("b", name), tag("small", _about(values) + cut), class_="who")
            rows.append(tag("div", who, tag("div", tracks, class_="tracks wide"), class_="forest-row"))
            for metric, chance, _, what in shown:
                lines.append(_line(name, what, values, metric, chance, _papers(suite, metric, name)))
        if rows or notes:
            parts += [tag("h4", title), tag("p", about, class_="note"), *notes, tag("div", rows, class_="forest")]
    if not parts:
        return Html("")
    beside = any(papers is not None for _, papers in lines)
    head = ["test set", "task", "accuracy", "chance", *(["paper, CLIP on CC12M"] if beside else [])]
    body = (
        tag("tr", cells, tag("td", "–" if papers is None else f"{papers:.1f}%") if beside else None)
        for cells, papers in lines
    )
    table = tag("table", tag("thead", tag("tr", (tag("th", word) for word in head))), tag("tbody", body))
    return text([*parts, tag("div", table, class_="scroll", tabindex=0), _embedding(run, step)])


def _about(values: Mapping[str, float]) -> str:
    parts = []
    if "classes" in values:
        parts.append(f"{values['classes']:,.0f} classes")
    if "train" in values:
        parts.append(f"{plural(int(values['train']), 'picture')} to learn from, {values['n']:,.0f} to test on")
    elif "captions" in values:
        parts += [plural(int(values["n"]), "picture"), plural(int(values["captions"]), "caption")]
    elif "episodes" in values:
        parts.append(f"{values['episodes']:,.0f} episodes, {values['n']:,.0f} pictures to test on")
    return ", ".join(parts)


def _track(label: str, values: Mapping[str, float], metric: str, chance: float) -> Html:
    # Imported here: the accuracy section shows these rows and owns the bars.
    from synthclip_jax.report.accuracy import track

    return track(label, values, metric, chance)


def _line(
    name: str, what: str, values: Mapping[str, float], metric: str, chance: str, papers: float | None
) -> tuple[Html, float | None]:
    low, high = values[f"{metric}_low"], values[f"{metric}_high"]
    cells: list[Any] = [
        tag("th", name, scope="row"),
        tag("td", what),
        tag("td", percent(values[metric]), tag("small", f"{100 * low:.1f} to {100 * high:.1f}")),
        tag("td", percent(values[chance], 2)) if chance in values else tag("td", "–"),
    ]
    return text(cells), papers


def _papers(suite: str, metric: str, name: str) -> float | None:
    """The paper's number for the same dataset and protocol."""
    tasks_of = {"image_r@5": "image_retrieval", "text_r@5": "text_retrieval", "acc1": suite}
    return paper_tables.models()[PAPERS]["datasets"].get(tasks_of.get(metric, ""), {}).get(name)


def _embedding(run: Run, step: int) -> Html:
    found = [result for result in results.read_results(run.folder, "embedding", []) if result["step"] == step]
    notes = [tag("p", note, class_="absent") for note in run.result_notes("embedding", step)]
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(
                tag("td", f"{values[key]:.3f}")
                for key in ("modality_gap", "alignment", "image_uniformity", "text_uniformity")
            ),
        )
        for name, values in (results.group(found[-1]["metrics"], "embedding").items() if found else ())
    ]
    if not rows:
        return Html("")
    head = ("test set", "modality gap", "alignment", "uniformity of pictures", "of captions")
    about = (
        "Pictures and captions on the unit sphere. Gap: between their means. Alignment: mean squared distance of a"
        " caption from its picture, 0 is best. Uniformity: lower is more evenly spread."
    )
    table = tag("table", tag("thead", tag("tr", (tag("th", word) for word in head))), tag("tbody", rows))
    heading = [tag("h4", "The shared space"), tag("p", about, class_="note"), *notes]
    return text([*heading, tag("div", table, class_="scroll", tabindex=0)])
