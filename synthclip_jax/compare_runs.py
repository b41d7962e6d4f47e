"""Where two checkpoints differ, on the same test sets: one self-contained HTML page.

    python -m synthclip_jax.compare_runs W1 W2 [--out=FILE.html] [--step1=N --step2=N]

For each test set that both were evaluated on: accuracies and whether they differ by more than chance (McNemar's exact
test), the classes that each wins, what each confuses, images on which they disagree, and accuracy against how often a
class is named in the captions that each run was trained on, with classes outside its concept bank apart. Reads the
predictions in `WORKDIR/eval` and the test sets; no model is run. Needs no JAX.
"""

import argparse
import collections
import importlib.resources
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from synthclip_jax.errors import UserError, command
from synthclip_jax.evals import intervals, origin, results
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.report import POLICY
from synthclip_jax.report.bars import track
from synthclip_jax.report.frequency import frequency
from synthclip_jax.report.markup import Html, percent, plural, tag, text, thumbnail
from synthclip_jax.report.workdir import UNREADABLE, Missing, Run

CLASSES, CONFUSIONS, IMAGES = 10, 8, 24  # shown of each


class CompareError(UserError, ValueError):
    """The two cannot be compared; the text says what to do."""


class Pair(NamedTuple):
    """Both models' first guesses on the images that both could read.

    Attributes:
      labels: the right classes.
      guesses: of the first and of the second model.
    """

    name: str
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    guesses: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]

    @property
    def right(self) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Which guesses are right."""
        return self.guesses[0] == self.labels, self.guesses[1] == self.labels


def pair(name: str, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> Pair:
    """Joins the predictions of two models by the images' keys.

    Raises:
      CompareError: they are of different classes, labels or images.
    """
    names = tuple(first["class_names"].tolist())
    if names != tuple(second["class_names"].tolist()):
        raise CompareError(f"{name}: the two were evaluated with different classes; evaluate both on the same test set")
    places = {key: row for row, key in enumerate(second["keys"].tolist())}
    rows = [(row, places[key]) for row, key in enumerate(first["keys"].tolist()) if key in places]
    if not rows:
        raise CompareError(f"{name}: no image is in both results; evaluate both on the same test set")
    a, b = map(np.array, zip(*rows, strict=True))
    if (first["labels"][a] != second["labels"][b]).any():
        raise CompareError(f"{name}: images of the same name have other labels; evaluate both on the same test set")
    keys = tuple(first["keys"][a].tolist())
    return Pair(name, names, keys, first["labels"][a], (first["top"][a, 0], second["top"][b, 0]))


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> float:
    """Two-sided exact p-value of McNemar's test: how likely so uneven a split of the images that only one of two
    equally good models gets right would be."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, few = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def confusions(labels: Int[np.ndarray, " n"], guesses: Int[np.ndarray, " n"]) -> collections.Counter[tuple[int, int]]:
    """How often each class was taken for each other one."""
    wrong = labels != guesses
    return collections.Counter(zip(labels[wrong].tolist(), guesses[wrong].tolist(), strict=True))


def _load(workdir: pathlib.Path, step: int | None) -> tuple[Run, dict[str, Any]]:
    run = Run(workdir)
    try:
        found = run.zeroshot
    except Missing as error:
        raise CompareError(
            f"{workdir}: no zero-shot results. Evaluate first: python -m synthclip_jax.evaluate"
        ) from error
    chosen = [result for result in found if step in (None, result["step"])]
    if not chosen:
        raise CompareError(f"{workdir}: no results of step {step}; steps: {', '.join(str(r['step']) for r in found)}")
    return run, chosen[-1]


def build(workdirs: Sequence[str | os.PathLike], steps: Sequence[int | None] = (None, None)) -> str:
    """The page as text.

    Raises:
      CompareError: one has no results, or they share no test set.
    """
    folders = [pathlib.Path(workdir) for workdir in workdirs]
    loaded = [_load(folder, step) for folder, step in zip(folders, steps, strict=True)]
    names = [
        f"{folder.resolve().name}, step {result['step']:,}" for folder, (_, result) in zip(folders, loaded, strict=True)
    ]
    if names[0] == names[1]:
        names = [f"{name} ({which})" for name, which in zip(names, ("first", "second"), strict=True)]
    groups = [results.group(result["metrics"], "zeroshot") for _, result in loaded]
    shared = [name for name in groups[0] if name in groups[1]]
    if not shared:
        raise CompareError(
            f"no test set in common: {', '.join(groups[0])} against {', '.join(groups[1])}. Evaluate both on the same"
        )
    sections = []
    for name in shared:
        try:
            joined = pair(name, *(run.detail(result, name) for run, result in loaded))
            body = text([*_notes(name, loaded, names), _test_set(joined, loaded, folders, names)])
        except (Missing, CompareError, *UNREADABLE) as error:
            body = tag("p", str(error), class_="absent")
        sections.append(tag("section", tag("div", tag("h2", name), class_="heading"), body, id=name))
    title = f"{names[0]} and {names[1]}"
    style = importlib.resources.files("synthclip_jax.report").joinpath("style.css").read_text(encoding="utf-8")
    key = tag("p", tag("span", names[0], class_="key a"), " ", tag("span", names[1], class_="key b"), class_="note")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title}: two checkpoints"),
        tag("style", Html(style)),
    )
    intro = tag("header", tag("h1", "Two checkpoints, the same pictures"), key)
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', intro, sections)), lang='en')}\n"


def _notes(name: str, loaded: list, names: Sequence[str]) -> Iterator[Html]:
    """What is to be said of the numbers of a test set."""
    prompts = [result["datasets"].get(name, {}).get("prompts") for _, result in loaded]
    if prompts[0] != prompts[1]:
        yield tag("p", "The two were evaluated with different prompts.", class_="absent")
    for (run, result), whose in zip(loaded, names, strict=True):
        if note := origin.weights_note(run.folder, result, name):
            yield tag("p", f"{whose}: {note}.", class_="absent")


def _test_set(joined: Pair, loaded: list, folders: Sequence[pathlib.Path], names: Sequence[str]) -> Html:
    return text(
        [
            _accuracies(joined, names),
            tag("h3", "Classes that one of them knows better", class_="sub"),
            _classes(joined, names),
            tag("h3", "What each takes for what", class_="sub"),
            _confusions(joined, names),
            tag("h3", "Pictures on which they disagree", class_="sub"),
            _images(joined, loaded, names),
            tag("h3", "Accuracy and how often a class was seen", class_="sub"),
            frequency(joined.class_names, *_per_class(joined), folders, names),
        ]
    )


def _accuracies(joined: Pair, names: Sequence[str]) -> Html:
    first, second = joined.right
    n, p = len(joined.labels), mcnemar(first, second)
    rows = []
    for name, right in zip(names, joined.right, strict=True):
        low, high = intervals.wilson(int(right.sum()), n)
        values = {"acc1": float(right.mean()), "acc1_low": low, "acc1_high": high}
        bar = tag("div", track("top-1", values, "acc1", 1 / len(joined.class_names)), class_="tracks")
        rows.append(tag("div", tag("div", tag("b", name), class_="who"), bar, class_="forest-row"))
    verdict = (
        f"{plural(n, 'picture')}: both right on {percent((first & second).mean())}, only the first on"
        f" {percent((first & ~second).mean())}, only the second on {percent((second & ~first).mean())}, neither on"
        f" {percent((~first & ~second).mean())}. "
    )
    chance = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    verdict += (
        f"The difference is larger than chance explains ({chance}, McNemar)."
        if p < 0.05
        else f"The difference may be chance ({chance}, McNemar)."
    )
    return text([tag("div", rows, class_="forest"), tag("p", verdict, class_="note")])


def _per_class(joined: Pair) -> tuple[list[np.ndarray], np.ndarray]:
    classes = len(joined.class_names)
    right = [np.bincount(joined.labels[hit], minlength=classes) for hit in joined.right]
    return right, np.bincount(joined.labels, minlength=classes)


def _classes(joined: Pair, names: Sequence[str]) -> Html:
    (first, second), count = _per_class(joined)
    lead = (first - second) / np.maximum(count, 1)
    tables = []
    for name, sign in zip(names, (1, -1), strict=True):
        order = [c for c in np.argsort(-sign * lead, kind="stable") if sign * lead[c] > 0][:CLASSES]
        won = int((sign * lead > 0).sum())
        rows = (
            tag(
                "tr",
                tag("th", joined.class_names[c], scope="row"),
                *(tag("td", f"{right[c]} of {count[c]}") for right in (first, second)),
            )
            for c in order
        )
        head = tag("tr", (tag("th", word) for word in ("class", "first", "second")))
        tables.append(
            tag(
                "div",
                tag("h4", f"{name}: {plural(won, 'class', 'classes')}"),
                tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll", tabindex=0),
            )
        )
    return tag("div", tables, class_="side")


def _confusions(joined: Pair, names: Sequence[str]) -> Html:
    found = [confusions(joined.labels, guesses) for guesses in joined.guesses]
    count = np.bincount(joined.labels, minlength=len(joined.class_names))
    lists = []
    for index, name in enumerate(names):
        own, other = found[index], found[1 - index]
        # The most frequent ones, and among equals those that the other does not make.
        chosen = sorted(own, key=lambda ab: (-own[ab], other[ab]))[:CONFUSIONS]
        items = (
            tag(
                "li",
                tag("b", joined.class_names[a]),
                " taken for ",
                tag("b", joined.class_names[b]),
                tag("span", f"{own[a, b]} of {count[a]}; the other: {other[a, b]}"),
            )
            for a, b in chosen
        )
        lists.append(tag("div", tag("h4", name), tag("ul", items, class_="confusions")))
    return tag("div", lists, class_="side")


def _images(joined: Pair, loaded: list, names: Sequence[str]) -> Html:
    first, second = joined.right
    parts = []
    for name, rows in zip(names, (np.flatnonzero(first & ~second), np.flatnonzero(second & ~first)), strict=True):
        # One of each class before the second of any, so that the page shows many.
        seen: collections.Counter[int] = collections.Counter()
        order = []
        for row in rows.tolist():
            label = int(joined.labels[row])
            order.append((seen[label], row))
            seen[label] += 1
        chosen = [row for _, row in sorted(order)[:IMAGES]]
        images: Mapping[str, bytes] = {}
        note = None
        try:
            run, result = loaded[0]
            images = run.test_pictures(result, joined.name, {joined.keys[row] for row in chosen})
        except UNREADABLE as error:
            note = tag("p", f"The pictures themselves cannot be shown: {error}", class_="absent")
        figures = []
        for row in chosen:
            key = joined.keys[row]
            shown = thumbnail(images[key]) if key in images else tag("span", "no picture", class_="nopicture")
            wrong = joined.guesses[1 if name == names[0] else 0][row]
            caption = tag(
                "figcaption", tag("b", joined.class_names[joined.labels[row]]), ", not ", joined.class_names[wrong]
            )
            figures.append(tag("figure", shown, caption))
        title = tag("h4", f"Only {name} is right: {plural(len(rows), 'picture')}")
        parts += [title, note, tag("div", figures, class_="disagree")]
    return text(parts)


@command("compare_runs")
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m synthclip_jax.compare_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs=2, type=pathlib.Path, metavar="WORKDIR", help="folders of the two runs")
    parser.add_argument("--step1", type=int, help="step of the first run's checkpoint; default: the newest evaluated")
    parser.add_argument("--step2", type=int, help="step of the second run's checkpoint")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("compare.html"), help="output page")
    arguments = parser.parse_args()
    page = build(arguments.workdirs, (arguments.step1, arguments.step2))
    write_atomic(arguments.out, page.encode("utf-8", errors="replace"))
    print(f"compare_runs: {arguments.out}, {len(page.encode()):,} bytes", flush=True)


if __name__ == "__main__":
    main()
