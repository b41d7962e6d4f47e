"""Where the training step's time on the device goes: shares by kind of kernel, and the longest kernels.

    python -m benchmarks.step_profile [--batch-size=512] [--set=model.attention=xla] [--out=FOLDER]

Our step as `benchmarks.train_step` builds it, on one GPU, traced by JAX's own profiler. `--out` keeps the table as JSON
and the compiled program as text, in which the names of the kernels can be looked up.
"""

import collections
import pathlib
import re
import tempfile
from typing import Any

from benchmarks import contenders, turns
from synthclip_jax.config import load_config

ROOT = pathlib.Path(__file__).parents[1]
# Kinds of kernels by their names, the first that fits.
KINDS = {
    "attention": r"fmha|flash|cudnn.*sdpa|sm\d+_flash|attention",
    "matrix products": r"gemm|nvjet|cutlass|cublas|xmma|triton_gemm|__cublas|dot",
    "copies": r"^copy|transpose|concatenate|slice|memcpy|memset|pad",
    "reductions": r"reduce|norm",
    "other fusions": r"fusion|loop|wrapped|input",
}


def main() -> None:
    """Prints the two tables."""
    parser = turns.make_parser("step_profile", __doc__)
    parser.add_argument("--batch-size", type=int, default=512, help="pairs a step")
    parser.add_argument("--steps", type=int, default=3, help="steps that are traced")
    parser.add_argument("--top", type=int, default=25, help="kernels to list")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a config value, may be repeated"
    )
    arguments = parser.parse_args()
    import jax

    if jax.default_backend() != "gpu":
        raise SystemExit("there is no GPU here, or JAX was not told to use it: JAX_PLATFORMS=cuda")
    config = load_config(
        ROOT / "configs" / "synthci_30m.py", [f"train.batch_size={arguments.batch_size}", *arguments.set]
    )
    result = profile(contenders.ours(config), arguments.steps) | {"batch_size": arguments.batch_size}
    total = result["milliseconds"]
    print(f"{result['device']}, {arguments.batch_size} pairs: {total:.1f} ms of kernels a step")
    for kind, spent in result["kinds"].items():
        print(f"{spent:9.2f} ms {spent / total:6.1%}  {kind}")
    for name, spent, count in result["kernels"][: arguments.top]:
        print(f"{spent:9.3f} ms {spent / total:6.1%}  {count:4} x  {name[:120]}")
    program = result.pop("program")
    turns.write(arguments.out, "step_profile", result)
    if arguments.out:
        (arguments.out / "step_profile.hlo.txt").write_text(program)


def profile(contender: contenders.Contender, steps: int) -> dict[str, Any]:
    """Traces some steps; milliseconds are those of one step."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            contender.run(steps)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        spent: dict[str, float] = collections.defaultdict(float)
        count: dict[str, int] = collections.defaultdict(int)
        for plane in data.planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    spent[event.name] += event.duration_ns / 1e6 / steps
                    count[event.name] += 1
    kinds: dict[str, float] = dict.fromkeys([*KINDS, "rest"], 0.0)
    for name, value in spent.items():
        kinds[kind_of(name)] += value
    return {
        "device": contender.about["device"],
        "versions": contender.about["versions"],
        "milliseconds": sum(spent.values()),
        "kinds": kinds,
        "kernels": sorted(((name, value, count[name] // steps) for name, value in spent.items()), key=lambda x: -x[1]),
        "program": contender.program(),
    }


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "rest"


if __name__ == "__main__":
    main()
