"""The training step: ours beside open_clip, eager and under `torch.compile`.

    python -m benchmarks.train_step [--small] [--only=ours,open_clip] [--set=model.attention=cudnn] [--out=...]
    python -m benchmarks.train_step --accumulate [--small]
    python -m benchmarks.train_step --loop

Same model (`configs/synthci_30m.py`: ViT-B/16 at 224 pixels, 77 tokens), batch, precision and optimizer, one synthetic
batch on the device, one process each. MFU = 3 x forward FLOPs of both towers x samples per second / dense bf16 peak of
the device, for all contenders (`synthclip_jax.model.flops`). Memory is the most that was in use on the device, or of
the whole process where the device has none of its own. `--small` is for CPUs: a small model in float32; there the
contenders take turns, on a GPU they follow each other. The last number is our speed over that of open_clip under
`torch.compile` (or eager, or the only other one, where `--only` leaves that).

`--accumulate`: a batch of 8 microbatches (4,096 of 512) by exact accumulation beside one microbatch alone. Exact means
one more forward pass, so that 0.75 is the limit.

`--loop`: the quickstart's training, `synthclip_jax.train` with loader, log and all, beside its bare compiled step
called in a loop on one batch. The last number is the speed of the loop over that of the bare step.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import turns

ROOT = pathlib.Path(__file__).parents[1]
NEEDS = {
    "ours": ("jax", "flax", "optax", "jaxtyping", "ml_collections"),
    "open_clip": ("torch", "timm", "open_clip", "ml_collections"),
    "open_clip_compiled": ("torch", "timm", "open_clip", "ml_collections"),
}
PACKAGES = {"open_clip": "open_clip_torch"}  # as pip names them, where that differs
SMALL = (
    "model.tower=openai",
    "data.image_size=64",
    "model.compute_dtype=float32",
    "model.vision.width=192",
    "model.vision.heads=3",
    "model.vision.layers=6",
    "model.text.width=128",
    "model.text.layers=4",
    "model.text.heads=4",
    "model.text.context_length=20",
)
ACCUMULATED = 8


class Failed(RuntimeError):
    """A contender's process ended early; the text is the end of what it said."""


class Process:
    """A contender (`benchmarks.contenders`) in a process of its own."""

    def __init__(self, contender: str, config: dict):
        # A file, since a pipe that nobody reads would stop it once it is full.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", contender],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.about = self._ask(json.dumps(config))
        self.seconds: list[float] = []  # of a step, for each round
        self.peak_bytes, self.peak_of = 0, ""

    def round(self, steps: int) -> None:
        """Takes some steps."""
        answer = self._ask(str(steps))
        self.seconds.append(answer["seconds"] / steps)
        on_device = answer["peak_bytes"] is not None
        self.peak_bytes = answer["peak_bytes"] if on_device else answer["process_bytes"]
        self.peak_of = "device" if on_device else "process"

    def end(self) -> None:
        """Lets the process end, and waits for that, so that its memory is free."""
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _ask(self, line: str) -> dict:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has died; its last words are read below
            pass
        for answer in self._process.stdout:
            if answer.startswith("{"):
                return json.loads(answer)
        self._process.wait()
        self._errors.seek(0)
        said = [text for text in self._errors.read().splitlines() if text.strip()]
        raise Failed("\n    ".join(said[-3:]) or f"exit status {self._process.returncode}")


def measure(entries: dict[str, tuple[str, dict]], steps: int, rounds: int, in_turns: bool) -> dict[str, Process]:
    """Runs every entry, label -> (contender, config); says which ones fail and leaves them out."""
    groups = [list(entries)] if in_turns else [[label] for label in entries]
    done: dict[str, Process] = {}
    for labels in groups:
        running: dict[str, Process] = {}
        for label in labels:
            missing = [name for name in NEEDS[entries[label][0]] if not importlib.util.find_spec(name)]
            if missing:
                packages = " ".join(PACKAGES.get(name, name) for name in missing)
                print(f"{label}: not run, missing here: {packages} (pip install --no-deps {packages})", flush=True)
                continue
            try:
                running[label] = Process(*entries[label])
            except Failed as error:
                print(f"{label}: failed\n    {error}", flush=True)
        for _ in range(rounds):
            for label in list(running):
                try:
                    running[label].round(steps)
                except Failed as error:
                    print(f"{label}: failed\n    {error}", flush=True)
                    del running[label]
        for process in running.values():
            process.end()
        done |= running
    return done


def main() -> None:
    """Prints a line per contender and the ratio."""
    parser = turns.make_parser("train_step", __doc__)
    parser.add_argument("--small", action="store_true", help="a small model in float32, for CPUs")
    parser.add_argument("--accumulate", action="store_true", help="exact accumulation beside its microbatch")
    parser.add_argument("--loop", action="store_true", help="the whole training loop beside its bare step")
    parser.add_argument("--only", default=",".join(NEEDS), help=f"contenders, of {','.join(NEEDS)}")
    parser.add_argument("--batch-size", type=int, help="pairs a step (--accumulate: of the microbatch)")
    parser.add_argument("--steps", type=int, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the best one counts")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a config value, may be repeated"
    )
    arguments = parser.parse_args()
    if not importlib.util.find_spec("ml_collections"):
        raise SystemExit("missing here: ml_collections, which configs are made of (pip install ml_collections)")
    unknown = set(arguments.only.split(",")) - set(NEEDS)
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(NEEDS)}")

    if arguments.loop:
        from benchmarks.train_loop import compare

        result = compare(arguments.steps or 20, arguments.rounds, arguments.set)
    else:
        result = _compare_steps(arguments)
    name = "train_step" + "_accumulate" * arguments.accumulate + "_loop" * arguments.loop + "_small" * arguments.small
    turns.write(arguments.out, name, result)
    print(f"{result['ratio_of']}: {result['ratio']:.3f}")


def _compare_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    from synthclip_jax.config import ConfigError, from_plain, load_config, plain
    from synthclip_jax.model import flops

    base = SMALL if arguments.small else ()
    batch = arguments.batch_size or (32 if arguments.small else 512)

    def config_of(*overrides: str) -> dict:
        return plain(load_config(ROOT / "configs" / "synthci_30m.py", [*base, *overrides, *arguments.set]))

    try:
        if arguments.accumulate:
            whole = config_of(f"train.batch_size={ACCUMULATED * batch}", f"train.microbatch={batch}")
            entries = {"accumulated": ("ours", whole), "microbatch": ("ours", config_of(f"train.batch_size={batch}"))}
        else:
            entries = {name: (name, config_of(f"train.batch_size={batch}")) for name in arguments.only.split(",")}
        config = from_plain(next(iter(entries.values()))[1])
    except ConfigError as error:
        raise SystemExit(f"{error}") from None
    steps = arguments.steps or (2 if arguments.small else 10)
    done = measure(entries, steps, arguments.rounds, in_turns=arguments.small)
    if not done:
        raise SystemExit("nothing could be run")
    parameters = {label: process.about["parameters"] for label, process in done.items()}
    if len(set(parameters.values())) != 1:
        raise SystemExit(f"these are not the same model; parameters: {parameters}")

    per_pair = flops.train_flops(config.model, config.data.image_size)
    rows: dict[str, dict] = {}
    for label, process in done.items():
        peak = flops.peak_flops(process.about["device"])
        batch_size = entries[label][1]["train"]["batch_size"]
        best = min(process.seconds)
        speed = batch_size / best
        rows[label] = {
            **process.about,
            "batch_size": batch_size,
            "samples_per_second": round(speed, 1),
            "slowest_round": round(max(process.seconds) / best, 3),
            "mfu": round(speed * per_pair / peak, 4) if peak else None,
            "peak_bytes": process.peak_bytes,
            "peak_of": process.peak_of,
        }
        print(
            f"{label:>20}: {speed:>9,.1f} samples/s"
            + (f"  MFU {rows[label]['mfu']:.1%}" if peak else "")
            + f"  batch {batch_size}  peak memory {process.peak_bytes / 2**30:.2f} GiB of the {process.peak_of}"
            + f"  slowest round {rows[label]['slowest_round']:.2f}x",
            flush=True,
        )
    first = next(iter(entries))
    others = [label for label in ("open_clip_compiled", "open_clip", "microbatch") if label in rows and label != first]
    if first not in rows or not others:
        raise SystemExit(f"no ratio: {first if first not in rows else 'nothing beside it'} could not be run")
    for other in others[:0:-1]:
        print(f"{first} / {other}: {rows[first]['samples_per_second'] / rows[other]['samples_per_second']:.3f}")
    return {
        "model": {
            "config": "configs/synthci_30m.py",
            "overrides": [*(SMALL if arguments.small else ()), *arguments.set],
        },
        "train_flops_per_pair": per_pair,
        "steps": steps,
        "rounds": arguments.rounds,
        "contenders": rows,
        "ratio_of": f"{first} / {others[0]}",
        "ratio": round(rows[first]["samples_per_second"] / rows[others[0]]["samples_per_second"], 3),
    }


if __name__ == "__main__":
    main()
