"""100,000 sprite images in one go: written, verified, audited, read by TensorFlow Datasets, on two cores.

    python -m benchmarks.sprites_100k [--images=100000] [--workdir=DIR] [--out=benchmarks/results]

Captions come from prompt templates, 20 images are drawn of each. Every step is the command that a user would run, in
a process of its own: `gen`, `gen.verify`, `gen.audit`, and at the end TFDS decodes every record. All must count the
same. Times are given as shares of the time that drawing and writing took; memory is the most that a step's own process
had. The last number is the time of all steps after writing over that of writing.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import turns
from synthclip_jax.packages import versions

PER_CAPTION = 20
SHARD = 2048
READ = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow_datasets as tfds
dataset = tfds.builder_from_directory(sys.argv[1]).as_dataset(split="train")
ids, shapes = set(), set()
for example in tfds.as_numpy(dataset):
    ids.add(example["id"]), shapes.add(example["image"].shape)
print(len(ids), *shapes)
"""
PACKAGES = ("numpy", "pillow", "pyarrow", "tensorflow-datasets", "jax")


def main(argv: list[str] | None = None) -> None:
    """Runs all steps, prints a line for each and the ratio; exits with status 1 and a reason if one fails."""
    parser = turns.make_parser("sprites_100k", __doc__)
    parser.add_argument("--images", type=int, default=100_000, help=f"a multiple of {PER_CAPTION}")
    parser.add_argument("--workdir", type=pathlib.Path, help="an empty folder; a temporary one if not given")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(arguments.workdir or pathlib.Path(temporary), arguments.images)
    for name, step in result["steps"].items():
        print(
            f"{name:>9}: {step['share_of_writing']:>6.3f} of the time of writing, {step['memory_bytes'] / 1e6:,.0f} MB"
        )
    print(
        f"{result['pictures']:,} images in {result['shards']} shards, {result['bytes'] / 1e6:,.1f} MB;"
        f" {result['verified']:,} items verified, {result['read_by_tfds']:,} images read by TFDS,"
        f" audit of {result['audit_bytes'] / 1e6:.1f} MB"
    )
    turns.write(arguments.out, "sprites_100k", result)
    print(f"all steps after writing / writing: {result['after_writing']:.2f}")


def measure(workdir: pathlib.Path, images: int) -> dict[str, Any]:
    """All steps on an empty workdir.

    Returns:
      Counts, bytes, and of each step its time as a share of writing.
    """
    per_concept = max(2, -(-3 * images // (PER_CAPTION * 114)))  # three times as many as are kept
    configure = [
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        "--config.gen.captions.engine=templates",
        "--config.gen.captions.examples=",
        "--config.gen.captions.temperature=1.0",
        f"--config.gen.captions.per_concept={per_concept}",
        "--config.gen.balance.t=0",
        f"--config.gen.balance.target_size={images // PER_CAPTION}",
        f"--config.gen.images.per_caption={PER_CAPTION}",
        f"--config.gen.images.shard_size={SHARD}",
    ]
    steps: dict[str, dict[str, float]] = {}
    run(steps, "captions", "-m", "gen", *configure, "--stages=concepts,captions,balance")
    run(steps, "writing", "-m", "gen", *configure, "--stages=images")
    run(steps, "finalize", "-m", "gen", *configure, "--stages=finalize")
    verified = run(steps, "verify", "-m", "gen.verify", f"--workdir={workdir}")
    run(steps, "audit", "-m", "gen.audit", f"--workdir={workdir}")
    folder = next((workdir / "dataset" / "quickstart").iterdir())
    count, *_ = run(steps, "tfds", "-c", READ, str(folder)).split()
    provenance = json.loads((folder / "provenance.json").read_text())
    made, read = provenance["records"], int(count)
    rejected = sum(provenance["rejects"].values())
    if made + rejected != images or made != read:
        sys.exit(f"{images:,} planned, {made:,} made, {rejected:,} rejected, {read:,} read: these do not agree")
    writing = steps["writing"]["seconds"]
    for step in steps.values():
        step["share_of_writing"] = round(step.pop("seconds") / writing, 4)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(PACKAGES),
        "pictures": made,
        "rejected": provenance["rejects"],
        "shards": len(provenance["shards"]),
        "bytes": sum(shard["bytes"] for shard in provenance["shards"]),
        "verified": int(verified.split("shards, ")[1].split(" items")[0].replace(",", "")),
        "faults": 0,  # gen.verify ends with another status if there is one
        "read_by_tfds": read,
        "audit_bytes": (workdir / "audit.html").stat().st_size,
        "steps": steps,
        "after_writing": round(
            sum(steps[name]["share_of_writing"] for name in ("finalize", "verify", "audit", "tfds")), 4
        ),
    }


def run(steps: dict[str, dict[str, float]], name: str, *arguments: str) -> str:
    """Runs a step in a process of its own; returns what it printed, and exits where it fails."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # its own memory, not the largest of all children
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{name}: failed with status {process.returncode}\n{output}")
    print(f"{name:>9}: {output.strip().splitlines()[-1] if output.strip() else 'done'}", flush=True)
    steps[name] = {"seconds": seconds, "memory_bytes": usage.ru_maxrss * 1024}
    return output


if __name__ == "__main__":
    main()
