"""The independent referee: stock open_clip, transformers and clip-benchmark on folders that we wrote.

    .venv/bin/python -m benchmarks.referee eval --dataset wds/NAME --dataset_root DIR --model local-dir:EXPORT \
        --pretrained "" --task zeroshot_classification --no_amp --num_workers 0 --output out.json

The arguments are clip_benchmark's own. It, and torchvision, live in `.venv/referee` (the Makefile puts them there) and
not among the other packages: PyPI's torchvision wants the CUDA build of torch, beside a CPU build transformers could
not be imported any more, and clip-benchmark 1.6.2 needs numpy < 2.4. So a process of its own sees them, with
declarations of the two operators that torchvision's Python code asks for and nothing here calls.
"""

import os
import pathlib
import runpy
import subprocess
import sys
from collections.abc import Sequence

FOLDER = pathlib.Path(sys.prefix) / "referee"
ROOT = pathlib.Path(__file__).resolve().parents[1]
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list = []  # the declarations live as long as the object that made them


def is_installed() -> bool:
    """Whether the Makefile has made the referee's folder."""
    return (FOLDER / "clip_benchmark").is_dir()


def run(module: str, arguments: Sequence[str]) -> str:
    """Runs `python -m MODULE ARGUMENTS` where the referee's packages can be imported; returns what it printed.

    Args:
      module: its name, or the path of a file.

    Raises:
      RuntimeError: it failed; the text is what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.referee", "--module", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    """With the referee's packages before all others, offline, and without the many devices that tests ask XLA for."""
    paths = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment["XLA_FLAGS"] = " ".join(flags)
    return environment


def import_torchvision() -> None:
    """Makes torchvision importable beside a CPU build of torch."""
    import torch

    try:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(operator)
        _kept.append(library)
    except RuntimeError:  # a torchvision that fits its torch has them
        pass
    import torchvision  # noqa: F401


def main() -> None:
    """Runs a module or a file, clip_benchmark's command line unless another one is named."""
    if str(FOLDER) not in sys.path:
        command = [sys.executable, "-m", "benchmarks.referee", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=_environment()).returncode)
    import_torchvision()
    module = "clip_benchmark.cli"
    if sys.argv[1:2] == ["--module"]:
        module, sys.argv[1:] = sys.argv[2], sys.argv[3:]
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
