"""Runs a study: a grid of ordinary runs, one table of their numbers, and what they show together.

    python -m synthclip_jax.study --study=configs/studies/paper.py --workdir=W --dry-run
    python -m synthclip_jax.study --study=configs/studies/NAME.py --workdir=W [--cell=0/4]

Each cell is a workdir W/cells/NAME in which the product's own commands run, one after the other. Kill anything, run
the same command again: what is done is not done again, and a command that was cut off goes on where it stopped. Any
number of processes may share W: --cell=I/N begins with every Nth cell and helps with what is left; set automatically in
a SLURM array. --executor=ray gives the cells to a Ray cluster (that of RAY_ADDRESS, else one on this machine) whose
machines all see W; --cpus, --gpus and --tpus say what a cell takes of it. A cell that fails is named, its log with it,
and the others go on; the next start tries it again.

Leaves W/STUDY.csv and W/STUDY.parquet, a row for each cell, and W/STUDY.json: power laws of the curves with 95%
intervals, how well they foretell the largest size, how many pairs of one kind are worth one of another, and each claim
with its effect, interval, seeds and verdict: shown, not shown, refuted. W/STUDY.html shows all of it on one page,
W/STUDY.md has the tables for a text; --figure=FILE.png draws the figure alone, with the Chromium of this machine.

--dry-run runs no cell. It prints every cell's commands, hours and bytes: by what finished cells took, by two short
trials of a command where the study has them, and by the rates that the study gives for other machines.
"""

import pathlib
import signal
import sys

from synthclip_jax.errors import command
from synthclip_jax.files.locations import local_path
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.study import costs, findings, markdown, page, ray, table
from synthclip_jax.study.commands import Commands, Stopped
from synthclip_jax.study.definition import Study
from synthclip_jax.study.driver import Driver, Outcome, definitions, read
from synthclip_jax.study.load import load_study
from synthclip_jax.study.store import Store
from synthclip_jax.wording import array_part, make_parser, part


def dry_run(study: Study, store: Store, commands: Commands) -> None:
    """Prints what the study costs.

    Raises:
      CellFailed: a trial fails.
      StudyError: the study is wrong, or the workdir holds another one.
    """
    there = read(study, store, definitions(study, store))
    here = costs.measured(there.records)
    here |= costs.try_out(study, store, here, commands)
    for line in costs.page(study, there.records, costs.machines(study, here), store.workdir):
        print(line, flush=True)


def show(study: Study, store: Store, outcome: Outcome, figure: pathlib.Path | None = None) -> None:
    """Writes table, findings, page and figure, and prints the findings.

    Raises:
      StoreError: they cannot be written.
      NoBrowser: there is none to draw the figure with.
    """
    paths = table.write(store.workdir, study, outcome)
    found = findings.find(study, outcome)
    paths.append(findings.write(store.workdir, found))
    for ending, text in ((page.ENDING, page.page(found)), (markdown.ENDING, markdown.markdown(found))):
        paths.append(store.workdir / f"{study.name}{ending}")
        write_atomic(paths[-1], text.encode())
    if figure:
        page.write_png(found, figure)
        paths.append(figure)
    for line in findings.lines(found):
        print(line)
    print(f"{len(outcome.records)} of {len(study.cells)} cells are done: {', '.join(map(str, paths))}", flush=True)
    for name, why in outcome.failed.items():
        print(f"cell {name} FAILED: {why}", file=sys.stderr, flush=True)


@command("study")
def main() -> int:
    """The command line. Returns the exit status: 1 where a cell has failed, 128 + N after signal N."""
    parser = make_parser("synthclip_jax.study", __doc__)
    parser.add_argument(
        "--study", required=True, metavar="FILE", help="study file, or the name of one that comes along, such as paper"
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the study, made if missing")
    parser.add_argument(
        "--cell",
        type=part,
        metavar="I/N",
        help="number of this process and of all that share the workdir, such as 0/4; default: from SLURM's array",
    )
    parser.add_argument("--dry-run", action="store_true", help="print cells, commands, hours and bytes; run no cell")
    parser.add_argument(
        "--figure", type=pathlib.Path, metavar="FILE.png", help="also draw the figure alone, as a PNG; needs Chromium"
    )
    parser.add_argument("--executor", default="local", choices=("local", "ray"))
    parser.add_argument("--cpus", type=float, default=1.0, help="ray: CPU cores of a cell")
    parser.add_argument("--gpus", type=float, default=0.0, help="ray: GPUs of a cell")
    parser.add_argument("--tpus", type=int, default=0, help="ray: TPU chips of a cell; all of a host")
    given = parser.parse_args()
    if given.cell and given.executor != "local":
        parser.error("--cell goes with --executor=local: Ray shares the cells out itself")
    study, store = load_study(given.study), Store(local_path(given.workdir).absolute())
    try:
        with Commands() as commands:
            if given.dry_run:
                dry_run(study, store, commands)
                return 0
            if given.executor == "ray":
                tpus = {"resources": {"TPU": given.tpus}} if given.tpus else {}
                resources = {"num_cpus": given.cpus, "num_gpus": given.gpus, **tpus}
                outcome = ray.run(study, store, resources, check=commands.check)
            else:
                outcome = Driver(study, store, commands, given.cell or array_part(), check=commands.check).run()
    except Stopped as stopped:
        print(f"study: stopped by {stopped} as asked; the same command continues", file=sys.stderr, flush=True)
        return 128 + signal.Signals[str(stopped)]
    show(study, store, outcome, given.figure)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
