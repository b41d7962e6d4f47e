"""One self-contained HTML page about the data: what is in it, and what is wrong with it.

    python -m gen.audit --workdir=runs/quickstart
    python -m gen.audit --workdir=W --reference=FOLDER [--checkpoint=W2]    beside real images, as a model sees them

writes WORKDIR/audit.html: measures of imbalance, coverage, diversity, images and agreement beside their limits,
counts before and after balancing, coverage beside the paper's, categories, captions, rejects, contact sheets, and a
search in the concepts. The drawing is in `synthclip_jax.report`, whose page about the run holds the audit as well. It
reads counts, commit records and a sample, so that 30 million pairs take no longer than the largest of these.

With --reference, density and coverage (Naeem et al., 2020) of a sample of the images beside the real ones of a folder,
and how far images are from each other, all by the embeddings of a checkpoint: numbers for W/measured.json and the page.
"""

import pathlib

import numpy as np

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import open_reader
from synthclip_jax.errors import command
from synthclip_jax.evals.coverage import ReferenceImages, measure, thinned
from synthclip_jax.files import state_files
from synthclip_jax.report import audit, audit_page
from synthclip_jax.report.document import write_page
from synthclip_jax.report.markup import percent
from synthclip_jax.report.signatures import signatures
from synthclip_jax.report.workdir import Run
from synthclip_jax.wording import make_parser
from synthclip_jax.workdir import generated


def write(workdir: pathlib.Path, version: str = "") -> tuple[pathlib.Path, list[str]]:
    """Writes the page.

    Args:
      version: of the dataset; empty: the one that training used, else the newest.

    Returns:
      Its path, and a line for each measure beyond its limit.

    Raises:
      Missing: there is no such workdir.
      VersionError: it has no such version.
    """
    flags: list[str] = []

    def build(run: Run) -> str:
        found = signatures(run, audit.sample_of(run), audit.agreement_of(run))
        flags.extend(
            f"{signature.name}: {percent(signature.value or 0.0)} ({signature.meaning}), allowed {signature.limit_text}"
            for signature in found
            if signature.crossed
        )
        return audit_page.build(run)

    return write_page(workdir, "audit.html", build, version=version), flags


def measure_images(
    workdir: pathlib.Path, reference: str, checkpoint: str, version: str = "", numbers: pathlib.Path | None = None
) -> dict[str, float]:
    """Compares a sample of the images with those of a folder, and writes the numbers where page and studies find them.

    Args:
      reference: folder of real images, or a test set of them; see `synthclip_jax.evals.coverage.ReferenceImages`.
      checkpoint: workdir or checkpoint whose model embeds them.
      version: as of `write`.
      numbers: another file for them; a workdir with several versions keeps those of the last one measured.

    Raises:
      Missing: there are no images.
      EvaluationError: there are too few on either side.
      CheckpointError: there is no such checkpoint.
    """
    from synthclip_jax.model.checkpoint_files import checkpoint_digest, find_checkpoint
    from synthclip_jax.model.encoder import load_encoder

    run = Run(workdir, version=version)
    real = ReferenceImages(reference)
    weights = find_checkpoint(checkpoint)
    encoder = load_encoder(weights)
    reader = open_reader(SourceSpec("tfrecord", str(run.pictures_folder), None, "image", "caption"))
    vectors = [batch.embeddings for batch in encoder.images((i, reader[i].image) for i in thinned(range(len(reader))))]
    found = measure(np.concatenate(vectors), real.embedded(encoder))
    for line in real.left_out.lines():
        print(f"{reference}: {line}", flush=True)
    made_from = {
        "version": run.pictures_folder.name,
        "images": reader.digest(),
        "reference": real.digest,
        "checkpoint": checkpoint_digest(weights),
        "k": real.k,
    }
    for path in filter(None, (workdir / generated.MEASURED, numbers)):
        state_files.write(path, {"metrics": found, "made_from": made_from})
    return found


@command("audit")
def main() -> None:
    """Writes the page, prints where it is and what is beyond its limit; exits with status 1 if it cannot be written."""
    parser = make_parser("gen.audit", __doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--version", default="", help="dataset version; empty: the one trained on, else the newest")
    parser.add_argument(
        "--reference",
        default="",
        metavar="FOLDER",
        help="real images to compare with; or a test set, such as wds:FOLDER",
    )
    parser.add_argument(
        "--checkpoint", default="", help="workdir or checkpoint whose model embeds them; default: that of --workdir"
    )
    parser.add_argument("--numbers", type=pathlib.Path, metavar="FILE", help="JSON file for them beside the usual one")
    arguments = parser.parse_args()
    if arguments.reference:
        checkpoint = arguments.checkpoint or str(arguments.workdir)
        found = measure_images(arguments.workdir, arguments.reference, checkpoint, arguments.version, arguments.numbers)
        print("beside real images: " + "  ".join(f"{name} {value:.4g}" for name, value in found.items()))
    elif arguments.checkpoint or arguments.numbers:
        parser.error("--checkpoint and --numbers go with --reference")
    path, flags = write(arguments.workdir, arguments.version)
    for flag in flags:
        print(f"flag  {flag}")
    print(f"audit: {path} ({path.stat().st_size / 1e6:.1f} MB), {len(flags)} measures beyond their limit")


if __name__ == "__main__":
    main()
