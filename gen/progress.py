"""One progress line for every stage: done/total, rate, ETA, rejects by reason.

    python -m gen.progress --workdir=W [--version=1.0.0] [--watch=10]

shows how far the stages of a workdir are, from its commit records alone: the same while they run, after a crash, and
from another machine.
"""

import collections
import contextlib
import time

from gen.shards.plans import read_json
from gen.shards.progress import status, status_line
from gen.shards.store import StageStore
from gen.stages import STAGES, Stage
from synthclip_jax.errors import command
from synthclip_jax.files.locations import Location, place
from synthclip_jax.files.storage import StoreError, list_files
from synthclip_jax.wording import make_parser
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import Version, dataset_folder, find_version


def _data_folder(stage: Stage, version: Version) -> Location | None:
    """Where the files of a stage's shards lie, if not in its own folder."""
    if not stage.dataset:
        return None
    plan = read_json(version.stage_folder("images") / generated.PLAN)
    return dataset_folder(version.workdir, stage.dataset.replace("NAME", plan["dataset"]), plan["version"])


def stage_lines(workdir: Location, version: str = "", now: float | None = None) -> list[str]:
    """A line for each stage that works in shards, and one for each shard that ends its workers.

    Raises:
      StoreError: a plan is damaged, or the storage cannot be read.
    """
    now, lines, of = now or time.time(), [], find_version(workdir, version)
    made = collections.Counter[str]()
    for stage in STAGES:
        if not stage.sharded:
            continue
        folder = of.stage_folder(stage.name)
        if not (folder / generated.PLAN).exists():
            if not stage.optional:  # those were perhaps never asked for
                lines.append(f"{stage.name}: not begun")
            continue
        plan = read_json(folder / generated.PLAN)
        store = StageStore(folder, _data_folder(stage, of))
        store.ensure_plan(plan)
        records = store.committed()
        # What a stage works on is what the one before has accepted.
        total = made[stage.shards_of] if stage.shards_of else plan[stage.count_key or stage.unit]
        made[stage.name] = sum(record["count"] for record in records.values())
        lines.append(status_line(stage.name, total, stage.unit, status(records, now), now))
        for name in sorted(name for name in list_files(folder / "failures") if "-error-" in name):
            with contextlib.suppress(StoreError):  # gone meanwhile
                note = read_json(folder / "failures" / name)
                if note["shard"] not in records:
                    lines.append(f"  shard {note['shard']} ended its worker on {note['host']}: {note['error']}")
    return lines


@command("progress")
def main() -> None:
    """Prints the lines, once or again and again."""
    parser = make_parser("gen.progress", __doc__)
    parser.add_argument("--workdir", required=True, type=place, help="folder or URL of the run")
    parser.add_argument("--version", default="", help="version of the dataset; default: the newest")
    parser.add_argument("--watch", type=float, default=0, help="seconds between two prints; 0: print once")
    arguments = parser.parse_args()
    try:
        while True:
            print("\n".join(stage_lines(arguments.workdir, arguments.version)), flush=True)
            if not arguments.watch:
                return
            time.sleep(arguments.watch)
            print(flush=True)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
