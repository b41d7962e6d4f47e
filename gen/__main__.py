"""Runs the stages of generation in order: concepts, captions, balance, images, finalize.

    python -m gen --config=configs/quickstart.py --workdir=runs/quickstart [--stages=captions,balance]

Each stage continues where it stopped and does nothing when it is done.
"""

import argparse
import importlib
import pathlib
import sys
import time

from gen.executor import EXECUTORS
from gen.store import StoreError
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.metrics import duration

STAGES = ("concepts", "captions", "balance", "images", "finalize")


def main() -> None:
    """Parses the command line and runs the stages asked for; exits with status 1 and a reason if one cannot go on."""
    parser = argparse.ArgumentParser(
        prog="python -m gen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of this run, made if missing")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--executor", default="local", choices=sorted(EXECUTORS))
    arguments, config = parse_args(parser)
    wanted = [stage.strip() for stage in arguments.stages.split(",") if stage.strip()]
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown or not wanted:
        parser.error(f"--stages={arguments.stages}: unknown {', '.join(unknown)}; allowed: {', '.join(STAGES)}")
    for stage in STAGES:
        if stage not in wanted:
            continue
        start = time.monotonic()
        module = importlib.import_module(f"gen.{stage}")
        try:
            summary = module.run(config, arguments.workdir, EXECUTORS[arguments.executor])
        except (StoreError, ValueError, FileNotFoundError) as error:
            sys.exit(f"{stage}: {error}")
        text = "  ".join(f"{key} {_show(value)}" for key, value in summary.items())
        print(f"{stage}: done in {duration(time.monotonic() - start)}  {text}", flush=True)


def _show(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
