"""One self-contained HTML page about a run.

    python -m synthclip_jax.report --workdir=runs/quickstart

writes WORKDIR/report.html: how concepts became captions, pictures and a model, and how well it sees. The page needs no
network and no script. Parts of the run that are not there yet leave a sentence in their place.
"""

import datetime
import importlib.resources
import os
import pathlib
import tempfile
from collections.abc import Callable

from synthclip_jax import __version__
from synthclip_jax.report import accuracy, generation, provenance, training
from synthclip_jax.report.markup import Html, tag
from synthclip_jax.report.masthead import masthead, run_name
from synthclip_jax.report.workdir import UNREADABLE, Missing, Run

# Whatever a caption may try: the page runs no script and asks for nothing from anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# (id, title, a line beside it, content)
SECTIONS: tuple[tuple[str, str, str, Callable[[Run], Html]], ...] = (
    (
        "pipeline",
        "From words to pictures",
        "What each step made of the one before, and what it turned away.",
        generation.pipeline,
    ),
    (
        "concepts",
        "Balancing",
        "Language repeats itself. Captions of common concepts are thinned, rare ones kept.",
        generation.concepts,
    ),
    ("captions", "Captions", "What the language model wrote.", generation.captions),
    (
        "pictures",
        "Pictures",
        "A sample of what the model learned from, the concept of each marked in its caption.",
        generation.pictures,
    ),
    ("training", "Training", "", training.training),
    ("zeroshot", "Zero-shot accuracy", "", accuracy.zeroshot),
    ("classes", "What it sees, and what it does not", "", accuracy.classes),
    ("provenance", "Provenance", "Enough to make it again.", provenance.provenance),
)

NAVIGATION = {
    "pipeline": "Pipeline",
    "concepts": "Balancing",
    "captions": "Captions",
    "pictures": "Pictures",
    "training": "Training",
    "zeroshot": "Accuracy",
    "classes": "Classes",
    "provenance": "Provenance",
}


def build(workdir: str | os.PathLike) -> str:
    """The page as text."""
    run = Run(workdir)
    style = importlib.resources.files(__name__).joinpath("style.css").read_text(encoding="utf-8")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = tag(
        "body",
        tag(
            "main",
            tag("nav", (tag("a", word, href=f"#{name}") for name, word in NAVIGATION.items()), aria_label="Sections"),
            masthead(run),
            (_section(run, *section) for section in SECTIONS),
        ),
        tag("footer", tag("p", f"synthclip_jax {__version__}, {now}")),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{run_name(run)}: run report"),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(run: Run, name: str, title: str, about: str, content: Callable[[Run], Html]) -> Html:
    try:
        body = content(run)
    except Missing as missing:
        body = tag("p", str(missing), class_="absent")
    except UNREADABLE as error:
        # A report is most wanted where a run went wrong: a damaged part must not take the others with it.
        body = tag("p", f"This part cannot be read: {type(error).__name__}: {error}", class_="absent")
    heading = tag("div", tag("h2", title), tag("p", about) if about else None, class_="heading")
    return tag("section", heading, body, id=name)


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes the page into the workdir.

    Returns:
      Its path.

    Raises:
      FileNotFoundError: there is no such workdir.
    """
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such workdir")
    path = folder / "report.html"
    page = build(folder).encode("utf-8", errors="replace")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".report.", delete=False) as file:
        file.write(page)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path
