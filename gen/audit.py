"""One self-contained HTML page about the data: what is in it, and what is wrong with it.

    python -m gen.audit --workdir=runs/quickstart

writes WORKDIR/audit.html: measures of imbalance, coverage, diversity, images and agreement beside their limits,
counts before and after balancing, coverage beside the paper's, categories, captions, rejects, contact sheets, and a
search in the concepts. The drawing is in `synthclip_jax.report`, whose page about the run holds the audit as well. It
reads counts, commit records and a sample, so that 30 million pairs take no longer than the largest of these.
"""

import pathlib

from synthclip_jax.errors import command
from synthclip_jax.report import audit, audit_page
from synthclip_jax.report.document import write_page
from synthclip_jax.report.markup import percent
from synthclip_jax.report.signatures import signatures
from synthclip_jax.report.workdir import Run
from synthclip_jax.wording import make_parser


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


@command("audit")
def main() -> None:
    """Writes the page, prints where it is and what is beyond its limit; exits with status 1 if it cannot be written."""
    parser = make_parser("gen.audit", __doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--version", default="", help="dataset version; empty: the one trained on, else the newest")
    arguments = parser.parse_args()
    path, flags = write(arguments.workdir, arguments.version)
    for flag in flags:
        print(f"flag  {flag}")
    print(f"audit: {path} ({path.stat().st_size / 1e6:.1f} MB), {len(flags)} measures beyond their limit")


if __name__ == "__main__":
    main()
