"""Reads everything again that generation has written, and names what is wrong or missing.

    python -m gen.verify --workdir=runs/quickstart [--repair]

Of each planned shard: its commit record, sizes and sha256 of its files. Of captions and images also that made and
rejected ids are together exactly the planned ones, each once; of images every record's checksum, the index, that the
fields are those of the id's caption, and that the image decodes; of NAME_filtered that it holds exactly the pairs
that score high enough. Then plans, bank, balance, metadata, card, test sets and the records of versions, against each
other and against provenance.json, which says what must be there: what is missing is a fault. Of a workdir that is not
at its end, what is not made yet is none. Exit status 1 if anything is wrong.

`--repair` makes again what is wrong, and verifies once more. Nothing is touched before all plans are compared with the
configuration and with provenance.json, and nothing is deleted that cannot be made again to the last byte: it is set
aside in W/gen/set_aside. The configuration is the one that provenance.json holds; where a workdir has none yet, or the
run's models lie in folders of this machine, give it with --config.
"""

import sys

from gen.checks.workdir import Result, verify
from gen.repair import repair
from synthclip_jax.errors import command
from synthclip_jax.files.locations import place
from synthclip_jax.left_out import printable
from synthclip_jax.wording import make_parser

SHOWN = 200  # faults printed


@command("verify")
def main() -> None:
    """Verifies, repairs if asked, and verifies again; exits with status 1 if anything is wrong at the end."""
    parser = make_parser("gen.verify", __doc__)
    parser.add_argument("--workdir", required=True, type=place, help="folder or URL of the run")
    parser.add_argument("--version", default="", help="version of the dataset; default: the newest")
    parser.add_argument("--repair", action="store_true", help="remake damaged and missing files")
    parser.add_argument("--config", help="for --repair: the run's config file, if it is not found in the workdir")
    parser.add_argument("--processes", type=int, default=0, help="number of worker processes; 0: one per core")
    arguments, rest = parser.parse_known_args()
    if unknown := [argument for argument in rest if not argument.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(unknown)}")
    overrides = [argument.removeprefix("--config.") for argument in rest]
    result = verify(arguments.workdir, arguments.version, arguments.processes)
    _print(result)
    # Once more where the records of versions were wrong: only then it can be said what else is.
    for _ in range(2 if any(fault.stage == "versions" for fault in result.faults) else 1):
        if not (result.faults and arguments.repair):
            break
        repair(arguments.workdir, arguments.version, result.faults, arguments.config, overrides)
        result = verify(arguments.workdir, arguments.version, arguments.processes)
        _print(result)
    sys.exit(1 if result.faults else 0)


def _print(result: Result) -> None:
    for line in result.unfinished:
        print(f"verify: {line}")
    for fault in result.faults[:SHOWN]:
        print(f"fault  {printable(str(fault))}")
    if len(result.faults) > SHOWN:
        print(f"fault  ... and {len(result.faults) - SHOWN:,} more")
    size = f"{result.bytes / 1e6:,.1f} MB"
    print(
        f"verify: {result.shards:,} shards, {result.items:,} items, {size}: {len(result.faults):,} faults", flush=True
    )


if __name__ == "__main__":
    main()
