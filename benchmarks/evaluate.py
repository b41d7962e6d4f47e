"""Our evaluation beside clip-benchmark's: the same checkpoint, the same folder, the same numbers, taking turns.

    python -m benchmarks.evaluate [--rounds=3] [--images=1000] [--out=benchmarks/results]

A ViT of random weights is exported to open_clip's form; a webdataset folder of 256-px JPEGs with 100 classes and the 7
prompt templates is evaluated by `python -m synthclip_jax.evaluate` and by `clip_benchmark eval`, both in float32 on the
processor. A turn is the whole command, from its start to its result: loading, compiling, prompts, images. Of the
numbers of loader processes, clip-benchmark is given the one with which it is fastest here, tried before the turns.

The last line's last number is the median over rounds of clip-benchmark's seconds over ours.
"""

import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import referee, turns
from synthclip_jax.evals import prompts
from synthclip_jax.packages import installed

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "quickstart.py"  # says nothing that counts: the checkpoint's own config does
CLASSES, SIDE = 100, 256
SHARDS = 2  # clip-benchmark's loader processes need one each
PACKAGES = {
    "ours": ("jax", "flax", "numpy", "pillow"),
    "clip-benchmark": ("open_clip_torch", "torch", "clip-benchmark"),
}
METRICS = ("acc1", "acc5", "mean_per_class_recall")


def main(argv: list[str] | None = None) -> None:
    parser = turns.make_parser("evaluate", __doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64, help="clip-benchmark's default")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--workers", default="0,1,2", help="numbers of loader processes tried for clip-benchmark")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="config value of the model")
    arguments = parser.parse_args(argv)
    if not referee.is_installed():
        sys.exit("clip-benchmark is not installed: make .venv/installed-test")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_checkpoint(folder / "run", arguments.set)
        referee.run(
            "synthclip_jax.export",
            ["--workdir", str(folder / "run"), "--format", "open_clip", "--out", str(folder / "export")],
        )
        write_images(folder / "images", arguments.images)
        workers, *others = map(int, arguments.workers.split(","))
        if others:
            tried = {}
            for count in (workers, *others):
                tried[count], _ = theirs(folder, arguments.batch, count)
                print(f"clip-benchmark with {count} loader processes: {tried[count]:.1f} s", flush=True)
            workers = min(tried, key=tried.__getitem__)
        taken = []
        for _ in range(arguments.rounds):
            (their_seconds, their_metrics), (our_seconds, our_metrics) = (
                theirs(folder, arguments.batch, workers),
                ours(folder, arguments.batch),
            )
            taken.append({"clip-benchmark": their_seconds, "ours": our_seconds})
            print(f"clip-benchmark {their_seconds:.1f} s, ours {our_seconds:.1f} s", flush=True)
    ratios = [turn["clip-benchmark"] / turn["ours"] for turn in taken]
    summary = {
        "versions": {name: installed(packages) for name, packages in PACKAGES.items()},
        "cores": len(os.sched_getaffinity(0)),
        "pictures": arguments.images,
        "prompts": CLASSES * len(prompts.template_sets()["imagenet7"]),
        "batch": arguments.batch,
        "model": arguments.set or "openai ViT-B/32",
        "loader_processes_of_clip_benchmark": workers,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "metrics": {"ours": our_metrics, "clip-benchmark": their_metrics},
        "ratio_of": "seconds of clip-benchmark / ours, whole command, median over rounds",
        "ratio": round(statistics.median(ratios), 3),
    }
    turns.write(arguments.out, "evaluate", summary)
    for metric in METRICS:
        print(f"{metric}: ours {our_metrics[metric]:.4f}, clip-benchmark {their_metrics[metric]:.4f}")
    print(f"clip-benchmark's seconds over ours: {summary['ratio']}")


def write_checkpoint(workdir: pathlib.Path, values: list[str]) -> None:
    """A workdir with the checkpoint of an untrained ViT-B/32, or of what `values` say."""
    import jax

    from synthclip_jax import config as config_lib
    from synthclip_jax.model.checkpoint import Checkpoints
    from synthclip_jax.model.checkpoint_files import checkpoint_folder
    from synthclip_jax.model.towers import make_model

    overrides = ["model.tower=openai", "model.vision.patch_size=32", "model.compute_dtype=float32"]
    overrides += ["data.interpolation=bicubic", *values]
    config = config_lib.load_config(ROOT / "configs" / "synthci_3m.py", overrides)
    init = make_model(config.model, config.data.image_size).init
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=1)
    params = jax.jit(init)(jax.random.key(0))
    checkpoints.save(1, params, {"step": jax.numpy.int32(1)}, {"config": config_lib.plain(config)})
    checkpoints.close()


def write_images(folder: pathlib.Path, count: int) -> None:
    """A webdataset folder of smooth noise as JPEGs, of about the size that photographs have."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
    names = prompts.class_names_of("imagenet1k") or ()
    (folder / "classnames.txt").write_text("\n".join(names[:CLASSES]) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(
        "\n".join(prompts.template_sets()["imagenet7"]) + "\n"
    )
    rng = np.random.default_rng(0)
    for shard, indexes in enumerate(np.array_split(np.arange(count), SHARDS)):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            _write_members(tar, indexes.tolist(), rng)


def _write_members(tar: tarfile.TarFile, indexes: list[int], rng: np.random.Generator) -> None:
    for index in indexes:
        noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        image = np.asarray(noise.resize((SIDE * 4 // 3, SIDE), Image.Resampling.BICUBIC), np.int16)
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        for suffix, data in (("jpg", file.getvalue()), ("cls", b"%d" % (index % CLASSES))):
            member = tarfile.TarInfo(f"{index:06d}.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def ours(folder: pathlib.Path, batch: int) -> tuple[float, dict[str, float]]:
    """(seconds, metrics) of our command."""
    command = [sys.executable, "-m", "synthclip_jax.evaluate", f"--config={CONFIG}", f"--workdir={folder / 'run'}"]
    command += [
        "--suite=zeroshot",
        f"--dataset=wds:{folder / 'images'}",
        f"--config.eval.batch_size={batch}",
        "--redo",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    metrics = json.loads((folder / "run" / "eval" / "1-zeroshot.json").read_text())["metrics"]
    return seconds, {name: metrics[f"zeroshot/images/{name}"] for name in METRICS}


def theirs(folder: pathlib.Path, batch: int, workers: int) -> tuple[float, dict[str, float]]:
    """(seconds, metrics) of clip-benchmark's command."""
    out = folder / "theirs.json"
    arguments = ["eval", "--dataset", "wds/images", "--dataset_root", str(folder / "images"), "--no_amp"]
    arguments += ["--task", "zeroshot_classification", "--model", f"local-dir:{folder / 'export'}", "--pretrained", ""]
    arguments += ["--batch_size", str(batch), "--num_workers", str(workers), "--output", str(out)]
    started = time.perf_counter()
    referee.run("clip_benchmark.cli", arguments)
    seconds = time.perf_counter() - started
    metrics = json.loads(out.read_text())["metrics"]
    return seconds, {name: metrics[name] for name in METRICS}


if __name__ == "__main__":
    main()
