"""The audit as a page of its own, with a search in the concepts: the one script of all pages, and nothing else runs."""

import base64
import hashlib
import importlib.resources
import json

from synthclip_jax.report import audit, generation, measures
from synthclip_jax.report.document import page
from synthclip_jax.report.markup import Html, plural, table, tag
from synthclip_jax.report.masthead import run_name
from synthclip_jax.report.workdir import Run

SEARCHED = 20_000  # concepts of each kind that the page holds: some 2 MB at most

SECTIONS = (
    ("findings", "Findings", "What to look at first.", audit.findings),
    ("counts", "Balance", "Captions per concept, before and after balancing.", generation.concepts),
    ("coverage", "Coverage", "", audit.coverage),
    ("categories", "Categories", "", audit.categories),
    ("extremes", "Most and never", "", audit.extremes),
    ("search", "Search", "", lambda run: search(run)),
    ("captions", "Captions", "", generation.captions),
    ("sayings", "How captions begin", "", audit.sayings),
    ("rejects", "Turned away", "What each step made of the one before.", generation.pipeline),
    ("agreement", "Agreement", "", audit.agreement),
    ("real", "Beside real images", "", audit.beside_real),
    ("sheets", "Pictures by category", "", audit.sheets),
)
NAVIGATION = {name: title for name, title, _, _ in SECTIONS}


def build(run: Run) -> str:
    """The page as text."""
    script = importlib.resources.files(__package__).joinpath("audit.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    header = tag("header", tag("p", "Audit of the data", class_="eyebrow"), tag("h1", run_name(run)))
    return page(
        run,
        f"{run_name(run)}: audit",
        header,
        SECTIONS,
        NAVIGATION,
        policy=f"script-src 'sha256-{digest}'",
        script=Html(script),
    )


def search(run: Run) -> Html:
    """A field that looks up concepts: those that are there most often, and those that never came up."""
    known = measures.concepts(run)
    listed = [*audit.over_represented(known, SEARCHED), *audit.never_seen(known, SEARCHED)]
    rows = [
        [known.texts[index], known.categories[known.category[index]], int(known.before[index]), int(known.after[index])]
        for index in listed
    ]
    # A data block is no script; what could end it early is written another way.
    data = json.dumps(rows, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    left_out = len(known.texts) - len(listed)
    note = f"{plural(len(listed), 'concept')} to look through" + (
        f"; {left_out:,} between the extremes are left out." if left_out else "."
    )
    return Html(
        tag("p", note, class_="note")
        + tag("input", type="search", id="query", placeholder="part of a concept or category", aria_label="Search")
        + tag("p", "Searching needs JavaScript.", id="count", class_="note")
        + table(("concept", "category", "before", "after"), (), "flush", id="found")
        + tag("script", Html(data), type="application/json", id="concepts")
    )
