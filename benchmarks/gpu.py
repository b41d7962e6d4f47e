"""All that only a GPU can show, one after the other: its tests, our step beside open_clip's, its profile, drawing.

    make gpu                                    installs what is missing into .venv, then runs this
    make gpu GPU_PYTHON=python3                 an environment as it stands
    python -m benchmarks.gpu [--dry-run] [--parts=tests,train_step] [--limit=300] [--out=benchmarks/results]

Results are written to a folder of the card's name, such as benchmarks/results/nvidia-h100-80gb-hbm3/: a JSON file for
each benchmark, the compiled step as text, and gpu.json, which says what ran, for how long and with which versions. One
card is used. A part that fails, lacks a package or takes longer than `--limit` seconds is named, and the others are
run. Their sizes are meant for about 7 minutes in all on an H100.

The exit status is 0 if every part succeeded, else 1; 1 also where there is no card, since nothing was measured then.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from typing import Any

from benchmarks import turns

ROOT = pathlib.Path(__file__).parents[1]
DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")
OURS = ("jax", "flax", "optax", "jaxtyping", "ml_collections")
TORCH = ("torch", "timm", "open_clip")
# As pip names them, where that differs.
PACKAGES = {"open_clip": "open_clip_torch", "google_crc32c": "google-crc32c", "cv2": "opencv-python-headless"}
SETTINGS = ("--batch-size=512", "--set=model.scan_layers=False")  # of the step, here and there the same
VERSIONS = ("jax", "jaxlib", "flax", "torch", "timm", "open_clip_torch", "diffusers")


@dataclasses.dataclass(frozen=True)
class Part:
    """A command of its own: a module, its arguments, and the packages that it imports."""

    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    writes: bool = True  # takes --out

    def command(self, out: pathlib.Path) -> list[str]:
        """What runs, by the Python that runs this."""
        return [sys.executable, "-m", self.module, *self.arguments, *([f"--out={out}"] if self.writes else [])]

    def missing(self) -> list[str]:
        """The packages that are not here, as pip names them; a torch without CUDA is none."""
        found = [PACKAGES.get(name, name) for name in self.needs if not importlib.util.find_spec(name)]
        if "torch" in self.needs and "torch" not in found and "+cpu" in importlib.metadata.version("torch"):
            found.append("torch with CUDA")
        return found


def parts() -> dict[str, Part]:
    """The parts by name, in their order."""
    tests = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    # Without its plug-in pytest does not know the limit of pyproject.toml, which is no error then.
    options = () if importlib.util.find_spec("pytest_timeout") else ("-o", "addopts=-q")
    names = tuple(str(file.relative_to(ROOT)) for file in tests)
    return {
        "tests": Part("pytest", ("-m", "gpu", "-rs", *options, *names), ("pytest", *OURS), writes=False),
        "train_step": Part(
            "benchmarks.train_step", ("--only=ours,open_clip_compiled", "--rounds=6", *SETTINGS), (*OURS, *TORCH)
        ),
        "step_profile": Part("benchmarks.step_profile", SETTINGS, OURS),
        "draw": Part(
            "benchmarks.draw",
            ("--model=full", "--steps=20", "--batch-size=16", "--batches=2", "--rounds=3"),
            (*OURS, "torch", "transformers", "diffusers", "accelerate", "safetensors"),
        ),
    }


def card() -> str:
    """The name of the first NVIDIA GPU, as its driver gives it; empty if there is none."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return said[0].strip() if said else ""
    for file in sorted(DRIVER.glob("*/information")):  # a container may have the driver and not its programs
        if found := re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE):
            return found[1].strip()
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns the exit status."""
    known = parts()
    parser = turns.make_parser("gpu", __doc__)
    parser.set_defaults(out=ROOT / "benchmarks" / "results")
    parser.add_argument("--parts", default=",".join(known), help=f"of {','.join(known)}")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a part is ended")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--card", action="store_true", help="print the card's name and run nothing")
    arguments = parser.parse_args(argv)
    chosen = arguments.parts.split(",")
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"--parts: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    name = card()
    folder = arguments.out / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "CARD")
    if arguments.dry_run:
        for part in chosen:
            print(" ".join(known[part].command(folder)))
        return 0
    if not name:
        print("gpu: there is no NVIDIA GPU here, so that nothing was run", file=sys.stderr)
        return 1
    if arguments.card:
        print(name)
        return 0
    return run({part: known[part] for part in chosen}, name, folder, arguments.limit)


def run(chosen: dict[str, Part], name: str, folder: pathlib.Path, limit: float) -> int:
    """Runs one part after the other and writes gpu.json; returns the exit status."""
    done: dict[str, Any] = {}
    for part, what in chosen.items():
        print(f"\n---- {part}: {' '.join(what.command(folder))}", flush=True)
        start = time.monotonic()
        if missing := what.missing():
            outcome = {"failed": f"not run, missing here: {', '.join(missing)}"}
        else:
            outcome = _run(what, folder, limit)
        done[part] = outcome | {"seconds": round(time.monotonic() - start)}
        # Written each time: what is here stays, whatever ends the next part.
        turns.write(folder, "gpu", {"card": name, "versions": _versions(), "parts": done})
    print(f"\n{name}: results are in {folder}")
    for part, outcome in done.items():
        counts = f", {outcome['passed']} passed, {outcome['skipped']} skipped" if "passed" in outcome else ""
        print(f"{part:>14}: {outcome.get('failed', 'done')}{counts}, {outcome['seconds']} s")
    return int(any("failed" in outcome for outcome in done.values()))


def _run(part: Part, folder: pathlib.Path, limit: float) -> dict[str, Any]:
    """What became of a part: why it failed, and counts of tests where it has any."""
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch) / "tests.xml"
        command = [*part.command(folder), *([f"--junitxml={report}"] if part.module == "pytest" else [])]
        # JAX never falls back on the CPU, which would be measured instead.
        environment = os.environ | {"JAX_PLATFORMS": "cuda,cpu"}
        # A session of its own, so that the processes that it starts end with it.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            status = process.wait(limit)
            outcome: dict[str, Any] = {"failed": f"exit status {status}"} if status else {}
        except subprocess.TimeoutExpired:
            outcome = {"failed": f"took longer than {limit:g} s (--limit)"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return outcome | (_counts(report) if report.exists() else {})


def _counts(report: pathlib.Path) -> dict[str, Any]:
    """How many tests passed and were skipped, by pytest's report; that none passed is a failure."""
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    tests, failed, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    passed = tests - failed - errors - skipped
    return {"passed": passed, "skipped": skipped} | ({} if passed else {"failed": "no test passed"})


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


if __name__ == "__main__":
    sys.exit(main())
