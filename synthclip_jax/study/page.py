"""The page of a study: one file, which needs no network and no script; and the figure alone, as a PNG.

Everything on it is from `STUDY.json`, so that a committed one can be drawn again.
"""

import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from synthclip_jax.errors import UserError
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.report.document import whole_page
from synthclip_jax.report.markup import Html, plural, row, table, tag, text
from synthclip_jax.study import claims, figures, numbers

ENDING = ".html"  # behind the name of the study
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FIGURE_SIZE = (1040, 420)  # CSS pixels; the PNG has twice as many
SIGNS = {claims.SHOWN: ("✓", ""), claims.REFUTED: ("✗", " crossed"), claims.NOT_SHOWN: ("?", " unknown")}


class NoBrowser(UserError, RuntimeError):
    """A PNG is drawn by a browser, and there is none."""


def page(found: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
      found: what `STUDY.json` holds.
    """
    sections = [
        ("claims", "Claims", "What was asked, and what came out.", _claims(found)),
        ("figure", "Figure", "", _figures(found)),
        ("equal", "Worth the same", "How many pairs of one kind reach what pairs of the other do.", _equal(found)),
        ("table", "Every kind of cell", "Means over seeds with 95% intervals.", _table(found)),
        ("failed", "Failed cells", "", _failed(found)),
        ("made", "How it was made", "", _made(found)),
    ]
    there = [section for section in sections if section[3]]
    links = tag("nav", (tag("a", title, href=f"#{name}") for name, title, _, _ in there), aria_label="Sections")
    body = [
        tag(
            "section",
            tag("div", tag("h2", title), tag("p", about) if about else None, class_="heading"),
            content,
            id=name,
        )
        for name, title, about, content in there
    ]
    return whole_page(f"{found['study']}: study", tag("main", links, _header(found), body), tag("footer"))


def figure(found: Mapping[str, Any]) -> str:
    """The figure alone, as a page: that of others, if there is one, beside the study's first."""
    plots = [figures.beside_plot(found["beside"])] if found["beside"] else []
    plots += figures.curve_plots(found)[: 2 - len(plots)]
    light = tag("style", Html(":root { color-scheme: light; } main { max-width: none; padding: 18px 28px; }"))
    return whole_page(found["study"], light, tag("main", tag("div", map(_held, plots), class_="side")))


def write_png(found: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws the figure with a browser of this machine.

    Raises:
      NoBrowser: there is none, or it fails.
      StoreError: the file cannot be written.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise NoBrowser("--figure needs a browser: install chromium (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "figure.html").write_text(figure(found), encoding="utf-8")
        flags = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"),
            "--blink-settings=preferredColorScheme=1",
            f"--window-size={FIGURE_SIZE[0]},{FIGURE_SIZE[1]}",
            f"--user-data-dir={folder / 'profile'}",
            f"--screenshot={folder / 'figure.png'}",
        )
        done = subprocess.run(
            [program, *flags, (folder / "figure.html").as_uri()], capture_output=True, text=True, check=False
        )
        if not (folder / "figure.png").exists():
            last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            raise NoBrowser(f"--figure: {program} drew nothing (status {done.returncode}): {last}")
        write_atomic(path, (folder / "figure.png").read_bytes())


def _header(found: Mapping[str, Any]) -> Html:
    cells, verdicts = found["cells"], [claim["verdict"] for claim in found["claims"].values()]
    seeds = max((claim["seeds"] for claim in found["claims"].values()), default=0)
    facts = [
        (f"{cells['done']:,}", "cells", f"of {cells['all']:,}" if cells["done"] < cells["all"] else ""),
        *((str(verdicts.count(verdict)), f"claims {verdict}", "") for verdict in SIGNS if verdict in verdicts),
        *([(str(seeds), "seeds", "")] if seeds else []),
    ]
    about = found["about"]
    return tag(
        "header",
        tag("p", "Study", class_="eyebrow"),
        tag("h1", found["study"]),
        tag("p", about[:1].upper() + about[1:], class_="lead"),
        tag(
            "dl",
            (
                tag("div", tag("dt", label, tag("small", note) if note else None), tag("dd", value))
                for value, label, note in facts
            ),
            class_="facts",
        ),
    )


def _claims(found: Mapping[str, Any]) -> Html | None:
    return tag("div", map(_claim, found["claims"].values()), class_="findings") if found["claims"] else None


def _claim(claim: Mapping[str, Any]) -> Html:
    sign, kind = SIGNS[claim["verdict"]]
    points = numbers.is_share(claim["metric"])
    parts = [tag("p", tag("span", sign, class_="sign"), tag("b", claim["verdict"]))]
    if claim["effect"] is not None:
        effect = numbers.change(claim["effect"], points) + (" points" if points else "")
        parts.append(tag("p", tag("b", effect), tag("small", numbers.changes(claim)), class_="value"))
    at = ", ".join(f"{name}: {numbers.change(value, points)}" for name, value in claim["by_pair"].items())
    about = f"{plural(claim['seeds'], 'seed')}; {claim['reason']}"
    parts.append(
        tag("p", claim["statement"], tag("small", about), tag("small", f"at {at}") if at else None, class_="about")
    )
    return tag("div", parts, class_=f"finding{kind}")


def _figures(found: Mapping[str, Any]) -> Html | None:
    plots = [figures.beside_plot(found["beside"])] if found["beside"] else []
    plots += [*figures.curve_plots(found), *figures.scatter_plots(found)]
    note = (
        "Dots are means over seeds, whiskers their 95% intervals by Student's t; lines are fitted power laws, error ="
        " floor + scale × size^-exponent, with 95% bootstrap bands."
    )
    return text((tag("p", note, class_="note"), tag("div", map(_held, plots), class_="side"))) if plots else None


def _held(plot: Html) -> Html:
    return tag("div", plot)


def _equal(found: Mapping[str, Any]) -> Html | None:
    rows = [
        row(
            f"{line['size']:,} of {found['curves'][line['of']]['title']}",
            found["curves"][line["curve"]]["title"],
            text(
                (
                    numbers.size(line["equal"]["value"]),
                    tag("small", "extrapolated") if numbers.is_beyond(line) else None,
                )
            ),
            numbers.sizes(line["equal"]),
            numbers.size(line["factor"]["value"]),
            found["curves"][line["curve"]]["plot"],
        )
        for line in found["equal_sizes"]
    ]
    return table(("pairs", "are worth, of", "pairs", "95%", "factor", "in"), rows, "flush") if rows else None


def _table(found: Mapping[str, Any]) -> Html | None:
    if not found["kinds"]:
        return None
    factors, shown = numbers.shown(found)
    rows = [
        row(
            numbers.factor(kind["factors"].get(factors[0])),
            *(numbers.factor(kind["factors"].get(name)) for name in factors[1:]),
            *(_value(kind["metrics"].get(name), name) for name in shown),
            numbers.runs(kind),
        )
        for kind in found["kinds"]
    ]
    return table((*factors, *(found["shown"][name] for name in shown), "runs"), rows, "flush")


def _failed(found: Mapping[str, Any]) -> Html | None:
    failed = found["cells"]["failed"]
    rows = ((tag("dt", name), tag("dd", why)) for name, why in failed.items())
    return tag("dl", rows, class_="rejected") if failed else None


def _made(found: Mapping[str, Any]) -> Html:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    others = {commit: count for commit, count in found["cells"]["commits"].items() if commit != found["commit"]}
    cells = ((tag("code", commit or "none"), f": {count} cells ") for commit, count in others.items())
    rows: Iterator[tuple[str, Any]] = filter(
        lambda item: item[1],
        (
            ("commit", found["commit"] and tag("code", found["commit"])),
            ("cells of other commits", others and cells),
            ("versions", versions),
        ),
    )
    return tag("dl", ((tag("dt", name), tag("dd", value)) for name, value in rows), class_="provenance")


def _value(metric: Mapping[str, Any] | None, name: str) -> Html | str:
    if metric is None:
        return ""
    value, interval = numbers.value(metric, numbers.is_share(name))
    return text((value, tag("small", interval) if interval else None))
