"""Runs the stages of generation in order: concepts, captions, balance, images, finalize.

    python -m gen --config=configs/quickstart.py --workdir=runs/quickstart [--stages=captions,balance]

Each stage continues where it stopped and does nothing when it is done. A workdir may be a URL (s3://bucket/folder). One
that was made with another configuration is refused; --new-version keeps what is there and starts another version of the
dataset beside it, of which only the stages that change are made again.
"""

import argparse
import importlib
import sys
import time
from typing import Any

import ml_collections

from gen.executor import EXECUTORS, Executor
from gen.store import PlanMismatch, StoreError
from gen.versions import open_version, start_version
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.generated import Version
from synthclip_jax.locations import Location, is_unreachable, location
from synthclip_jax.metrics import duration

STAGES = ("concepts", "captions", "balance", "images", "finalize")
WITH_FOLDER = STAGES[:-1]  # finalize writes into the dataset


def main() -> None:
    """Parses the command line and runs the stages asked for; exits with status 1 and a reason if one cannot go on."""
    parser = argparse.ArgumentParser(
        prog="python -m gen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=location, help="folder or URL of this run, made if missing")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--executor", default="local", choices=sorted(EXECUTORS))
    parser.add_argument(
        "--new-version",
        action="store_true",
        help="where the configuration differs from what is there, start another version of the dataset beside it",
    )
    arguments, config = parse_args(parser)
    wanted = [stage.strip() for stage in arguments.stages.split(",") if stage.strip()]
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown or not wanted:
        parser.error(f"--stages={arguments.stages}: unknown {', '.join(unknown)}; allowed: {', '.join(STAGES)}")
    run = _Run(config, arguments.workdir, EXECUTORS[arguments.executor], arguments.new_version)
    for stage in STAGES:
        if stage not in wanted:
            continue
        start = time.monotonic()
        try:
            summary = run(stage)
        except (StoreError, ValueError, OSError) as error:
            sys.exit(f"{stage}: {error}")
        except Exception as error:
            if is_unreachable(error):
                sys.exit(f"{stage}: the object store cannot be reached. Run the same command again later ({error})")
            raise
        text = "  ".join(f"{key} {_show(value)}" for key, value in summary.items())
        print(f"{stage}: done in {duration(time.monotonic() - start)}  {text}", flush=True)


class _Run:
    """Runs stages of one version; of another one from the first stage on that the configuration changes."""

    def __init__(self, config: Any, workdir: Location, executor: Executor, new_version: bool):
        self._config, self._workdir, self._executor, self._new = config, workdir, executor, new_version
        self._version: Version | None = None
        self._name = ""  # of a version to start

    def __call__(self, stage: str) -> dict[str, Any]:
        if self._version is None:
            self._version, self._name = open_version(self._workdir, self._config.gen.version, self._new)
        if self._name and stage == "images":  # nothing else has changed: the dataset gets another name
            self._start(stage, f"gen.version: {self._version.dataset} -> {self._name}")
        try:
            return self._run(stage)
        except PlanMismatch as error:
            if not self._new:
                raise
            self._start(stage, str(error))
            return self._run(stage)

    def _run(self, stage: str) -> dict[str, Any]:
        assert self._version
        # Named, so that a version which another driver starts meanwhile changes nothing here.
        config = ml_collections.ConfigDict(self._config)
        config.gen.version = self._version.dataset
        module = importlib.import_module(f"gen.{stage}")
        return module.run(ml_collections.FrozenConfigDict(config), self._workdir, self._executor)

    def _start(self, stage: str, why: str) -> None:
        assert self._version
        self._version = start_version(self._workdir, self._version, WITH_FOLDER, stage, self._name, why)
        self._new, self._name = False, ""
        print(f"{stage}: {why}\n{stage}: version {self._version.dataset} starts here", flush=True)


def _show(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
