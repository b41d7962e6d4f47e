"""One self-contained HTML page about a run.

    python -m synthclip_jax.report --workdir=runs/quickstart

writes WORKDIR/report.html: how concepts became captions, pictures and a model, and how well it sees. The page needs no
network and no script. Parts of the run that are not there yet leave a sentence in their place.
"""

import os
import pathlib

from synthclip_jax.report import accuracy, audit, generation, provenance, training
from synthclip_jax.report.document import Section, page, write_page
from synthclip_jax.report.masthead import masthead, run_name
from synthclip_jax.report.workdir import Run

SECTIONS: tuple[Section, ...] = (
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
    (
        "audit",
        "Audit of the data",
        "How data fail, each way with its limit. `python -m gen.audit` makes it a page of its own.",
        audit.whole,
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
    "audit": "Audit",
    "training": "Training",
    "zeroshot": "Accuracy",
    "classes": "Classes",
    "provenance": "Provenance",
}


def build(workdir: str | os.PathLike) -> str:
    """The page as text."""
    return _build(Run(workdir))


def _build(run: Run) -> str:
    return page(run, f"{run_name(run)}: run report", masthead(run), SECTIONS, NAVIGATION)


def write(workdir: str | os.PathLike, allow_outside: bool = False) -> pathlib.Path:
    """Writes the page into the workdir.

    Args:
      allow_outside: pictures of datasets and test sets that lie outside the workdir may be shown.

    Returns:
      Its path.

    Raises:
      Missing: there is no such workdir.
    """
    return write_page(workdir, "report.html", _build, allow_outside=allow_outside)
