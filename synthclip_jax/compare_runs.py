"""Where two checkpoints differ, on the same test sets: one self-contained HTML page.

    python -m synthclip_jax.compare_runs W1 W2 [--out=FILE.html] [--step1=N --step2=N]

For each test set that both were evaluated on: accuracies and whether they differ by more than chance (McNemar's exact
test), the classes that each wins, what each confuses, images on which they disagree, and accuracy against how often a
class is named in the captions that each run was trained on, with classes outside its concept bank apart. Reads the
predictions in `WORKDIR/eval` and the test sets; no model is run. Needs no JAX.
"""

import collections
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from synthclip_jax.errors import UserError, command
from synthclip_jax.evals import intervals, origin, results
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.report.accuracy import confusions, pictures_of
from synthclip_jax.report.bars import track
from synthclip_jax.report.document import whole_page
from synthclip_jax.report.frequency import frequency
from synthclip_jax.report.markup import Html, percent, plural, row, table, tag, text, thumbnail
from synthclip_jax.report.missing import UNREADABLE, Missing
from synthclip_jax.report.workdir import Run
from synthclip_jax.wording import make_parser

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
    from scipy import stats  # a second to import

    differ = int((first != second).sum())
    return float(stats.binomtest(int((first & ~second).sum()), differ).pvalue) if differ else 1.0


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
    key = tag("p", tag("span", names[0], class_="key a"), " ", tag("span", names[1], class_="key b"), class_="note")
    intro = tag("header", tag("h1", "Two checkpoints, the same pictures"), key)
    return whole_page(f"{names[0]} and {names[1]}: two checkpoints", tag("main", intro, sections))


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
        values = intervals.share("acc1", int(right.sum()), n)
        bar = tag("div", track("top-1", values, "acc1", 1 / len(joined.class_names)), class_="tracks")
        rows.append(tag("div", tag("div", tag("b", name), class_="who"), bar, class_="forest-row"))
    verdict = (
        f"{plural(n, 'picture')}: both right on {percent((first & second).mean())}, only the first on"
        f" {percent((first & ~second).mean())}, only the second on {percent((second & ~first).mean())}, neither on"
        f" {percent((~first & ~second).mean())}. "
    )
    chance = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    difference = "is larger than chance explains" if p < 0.05 else "may be chance"
    verdict += f"The difference {difference} ({chance}, McNemar)."
    return text([tag("div", rows, class_="forest"), tag("p", verdict, class_="note")])


def _per_class(joined: Pair) -> tuple[list[np.ndarray], np.ndarray]:
    counted = [intervals.per_class(guesses, joined.labels, len(joined.class_names)) for guesses in joined.guesses]
    return [right for right, _ in counted], counted[0][1]


def _classes(joined: Pair, names: Sequence[str]) -> Html:
    (first, second), count = _per_class(joined)
    lead = (first - second) / np.maximum(count, 1)
    tables = []
    for name, sign in zip(names, (1, -1), strict=True):
        order = [c for c in np.argsort(-sign * lead, kind="stable") if sign * lead[c] > 0][:CLASSES]
        won = int((sign * lead > 0).sum())
        rows = (row(joined.class_names[c], f"{first[c]} of {count[c]}", f"{second[c]} of {count[c]}") for c in order)
        title = tag("h4", f"{name}: {plural(won, 'class', 'classes')}")
        tables.append(tag("div", title, table(("class", "first", "second"), rows)))
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
    for name, places, other in zip(names, (first & ~second, second & ~first), joined.guesses[::-1], strict=True):
        rows = np.flatnonzero(places).tolist()
        # One of each class before the second of any, so that the page shows many.
        seen: collections.Counter[int] = collections.Counter()
        order = []
        for place in rows:
            label = int(joined.labels[place])
            order.append((seen[label], place))
            seen[label] += 1
        chosen = [place for _, place in sorted(order)[:IMAGES]]
        run, result = loaded[0]
        images, note = pictures_of(run, result, joined.name, {joined.keys[place] for place in chosen})
        figures = []
        for place in chosen:
            right, wrong = joined.class_names[joined.labels[place]], joined.class_names[other[place]]
            caption = tag("figcaption", tag("b", right), ", not ", wrong)
            figures.append(tag("figure", thumbnail(images.get(joined.keys[place])), caption))
        title = tag("h4", f"Only {name} is right: {plural(len(rows), 'picture')}")
        parts += [title, note, tag("div", figures, class_="disagree")]
    return text(parts)


@command("compare_runs")
def main() -> None:
    """Command line."""
    parser = make_parser("synthclip_jax.compare_runs", __doc__)
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
