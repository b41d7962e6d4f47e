"""Runs the stages of generation in order (`gen.stages`).

    python -m gen --config=configs/quickstart.py --workdir=runs/quickstart [--stages=captions,balance]

Each stage continues where it stopped and does nothing when it is done. A workdir may be a URL (s3://bucket/folder). One
that was made with another configuration is refused; --new-version keeps what is there and starts another version of the
dataset beside it, of which only the stages that change are made again.

--executor=ray runs the shards on the Ray cluster that RAY_ADDRESS names, or on one that it starts on this machine.
Several processes with --executor=local may share a workdir: --part=0/8 is the first of eight; set
automatically in a SLURM array. `python -m gen.progress` shows how far they are.
"""

import time
from typing import Any

import ml_collections

from gen.shards.executor import EXECUTORS, make_executor
from gen.shards.local import Executor
from gen.shards.plans import PlanMismatch
from gen.shards.versions import open_version, start_version, written_folders
from gen.stages import BY_NAME, COMMANDS, VERSIONED
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.files.locations import Location, is_url, place
from synthclip_jax.wording import array_part, duration, make_parser, part
from synthclip_jax.workdir.versions import Version, check_inside


@command("gen")
def main() -> None:
    """Parses the command line and runs the stages asked for; exits with status 1 and a reason if one cannot go on."""
    parser = make_parser("gen", __doc__)
    parser.epilog = "\n".join(["stages:", *(f"  {name:<11}{BY_NAME[name].about}" for name in COMMANDS)])
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=place, help="folder or URL of this run, made if missing")
    parser.add_argument("--stages", default=",".join(COMMANDS), help="stages, comma-separated; default: all")
    parser.add_argument("--executor", default="local", choices=EXECUTORS)
    parser.add_argument(
        "--part",
        type=part,
        help="number of this process and number of all processes, such as 0/8; default: from SLURM's array",
    )
    parser.add_argument(
        "--new-version",
        action="store_true",
        help="if the configuration has changed, start another version of the dataset beside the first",
    )
    arguments, config = parse_args(parser)
    wanted = [stage.strip() for stage in arguments.stages.split(",") if stage.strip()]
    unknown = [stage for stage in wanted if stage not in COMMANDS]
    if unknown or not wanted:
        parser.error(f"--stages={arguments.stages}: unknown {', '.join(unknown)}; allowed: {', '.join(COMMANDS)}")
    if arguments.part and arguments.executor != "local":
        parser.error("--part goes with --executor=local: Ray shares the shards out itself")
    if arguments.executor == "ray" and not is_url(arguments.workdir):
        arguments.workdir = arguments.workdir.absolute()  # workers are elsewhere
    executor = make_executor(arguments.executor, config.gen, arguments.part or array_part())
    run = _Run(config, arguments.workdir, executor, arguments.new_version)
    for stage in COMMANDS:
        if stage not in wanted:
            continue
        start = time.monotonic()
        summary = command(stage)(run)(stage)
        if not summary:
            continue  # an optional stage that is not asked for
        text = "  ".join(f"{key} {_show(value)}" for key, value in summary.items())
        print(f"{stage}: done in {duration(time.monotonic() - start)}  {text}", flush=True)
    print("Generation is finished", flush=True)


class _Run:
    """Runs stages of one version; of another one from the first stage on that the configuration changes."""

    def __init__(self, config: Config, workdir: Location, executor: Executor, new_version: bool):
        self._config, self._workdir, self._executor, self._new = config, workdir, executor, new_version
        self._version: Version | None = None
        self._name = ""  # of a version to start

    def __call__(self, stage: str) -> dict[str, Any]:
        if self._version is None:
            check_inside(self._workdir, ["gen/versions"])
            self._version, self._name = open_version(self._workdir, self._config.gen.version, self._new)
        if self._name and stage == "images":  # nothing else has changed: the dataset gets another name
            self._start(stage, f"gen.version: {self._version.dataset} -> {self._name}")
        try:
            return self._run(stage)
        except PlanMismatch as error:
            if not self._new or stage not in VERSIONED:
                raise
            self._start(stage, str(error))  # which a damaged plan is not: that stops here
            return self._run(stage)

    def _run(self, stage: str) -> dict[str, Any]:
        assert self._version
        # Named, so that a version which another driver starts meanwhile changes nothing here.
        config = ml_collections.ConfigDict(self._config)
        config.gen.version = self._version.dataset
        check_inside(self._workdir, written_folders(self._version, config.name))
        return BY_NAME[stage].run(ml_collections.FrozenConfigDict(config), self._workdir, self._executor)

    def _start(self, stage: str, why: str) -> None:
        assert self._version
        self._version = start_version(self._workdir, self._version, stage, self._name, why)
        self._new, self._name = False, ""
        print(f"{stage}: {why}\n{stage}: version {self._version.dataset} starts here", flush=True)


def _show(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
