"""The command line of `python -m synthclip_jax.report`."""

import pathlib

from synthclip_jax import report
from synthclip_jax.errors import command
from synthclip_jax.wording import make_parser


@command("report")
def main() -> None:
    """Writes the page and prints where it is; exits with status 1 and a reason if it cannot."""
    parser = make_parser("synthclip_jax.report", report.__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="show pictures of datasets and test sets that lie outside the workdir (for a workdir of your own)",
    )
    arguments = parser.parse_args()
    path = report.write(arguments.workdir, arguments.allow_outside)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
