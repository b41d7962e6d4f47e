"""What else the checkpoint can do: linear probes, few-shot, retrieval, the shape of its space, and the paper's numbers
beside them where the test set is one of the paper's."""

from collections.abc import Mapping
from typing import Any

from synthclip_jax.evals import paper_tables, results
from synthclip_jax.evals.suite import Suite
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.report.bars import track
from synthclip_jax.report.markup import Html, percent, plural, row, table, tag, text, with_interval
from synthclip_jax.report.workdir import Run

PAPERS = "clip_cc12m"  # whose numbers stand beside ours


def tasks(run: Run, step: int) -> Html:
    """Rows of bars for each suite that was evaluated at this step, and one table of all; nothing where none was."""
    parts: list[Any] = []
    lines: list[tuple[str, str, dict[str, float], str, str, float | None]] = []
    for suite, shown in SUITES.items():
        if not shown.measures:
            continue
        found = [result for result in results.read_results(run.folder, suite, []) if result["step"] == step]
        notes = [tag("p", note, class_="absent") for note in run.result_notes(suite, step)]
        rows = []
        for name, values in results.group(found[-1]["metrics"], suite).items() if found else ():
            measures = [measure for measure in shown.measures if measure.metric in values]
            tracks = [track(label, values, metric, values.get(chance, 0.0)) for metric, chance, label, _ in measures]
            learned = found[-1].get("datasets", {}).get(name, {}).get("train", "")
            cut = ", of one split divided by class" if learned.startswith("two thirds") else ""
            who = tag("div", tag("b", name), tag("small", _about(values) + cut), class_="who")
            rows.append(tag("div", who, tag("div", tracks, class_="tracks wide"), class_="forest-row"))
            for metric, chance, _, what in measures:
                lines.append((name, what, values, metric, chance, _papers(shown, metric, name)))
        if rows or notes:
            parts += [
                tag("h4", shown.title),
                tag("p", shown.about, class_="note"),
                *notes,
                tag("div", rows, class_="forest"),
            ]
    if not parts:
        return Html("")
    beside = any(papers is not None for *_, papers in lines)
    head = ["test set", "task", "accuracy", "chance", *(["paper, CLIP on CC12M"] if beside else [])]
    body = []
    for name, what, values, metric, chance, papers in lines:
        share = with_interval(values[metric], values[f"{metric}_low"], values[f"{metric}_high"])
        cells = [what, share, percent(values[chance], 2) if chance in values else "–"]
        body.append(row(name, *cells, *(["–" if papers is None else f"{papers:.1f}%"] if beside else [])))
    return text([*parts, table(head, body), _embedding(run, step)])


def _about(values: Mapping[str, float]) -> str:
    parts = []
    if "classes" in values:
        parts.append(f"{values['classes']:,.0f} classes")
    if "train" in values:
        parts.append(f"{plural(int(values['train']), 'picture')} to learn from, {values['n']:,.0f} to test on")
    elif "captions" in values:
        parts += [plural(int(values["n"]), "picture"), plural(int(values["captions"]), "caption")]
    elif "clean" in values:
        parts.append(plural(int(values["n"]), "picture"))
    elif "episodes" in values:
        parts.append(f"{values['episodes']:,.0f} episodes, {values['n']:,.0f} pictures to test on")
    return ", ".join(parts)


def _papers(suite: type[Suite], metric: str, name: str) -> float | None:
    """The paper's number for the same dataset and protocol."""
    tasks_of = {reported or suite.main: task for task, reported in suite.papers.items()}
    return paper_tables.models()[PAPERS]["datasets"].get(tasks_of.get(metric, ""), {}).get(name)


def _embedding(run: Run, step: int) -> Html:
    found = [result for result in results.read_results(run.folder, "embedding", []) if result["step"] == step]
    notes = [tag("p", note, class_="absent") for note in run.result_notes("embedding", step)]
    shown = ("modality_gap", "alignment", "image_uniformity", "text_uniformity")
    rows = [
        row(name, *(f"{values[key]:.3f}" for key in shown))
        for name, values in (results.group(found[-1]["metrics"], "embedding").items() if found else ())
    ]
    if not rows:
        return Html("")
    head = ("test set", "modality gap", "alignment", "uniformity of pictures", "of captions")
    about = (
        "Pictures and captions on the unit sphere. Gap: between their means. Alignment: mean squared distance of a"
        " caption from its picture, 0 is best. Uniformity: lower is more evenly spread."
    )
    return text([tag("h4", "The shared space"), tag("p", about, class_="note"), *notes, table(head, rows)])
