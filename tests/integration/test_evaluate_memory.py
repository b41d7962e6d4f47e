"""Evaluation streams: its memory does not grow with the number of images."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from toy_testset import write_wds

PROGRAM = """
import json, pathlib, sys
import jax
from synthclip_jax.config import default_config
from synthclip_jax.evals.datasets import open_dataset
from synthclip_jax.evals.zeroshot import ZeroShot
from synthclip_jax.model.towers import make_model

folder, sizes = pathlib.Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]
config = default_config()
config.data.image_size, config.data.threads, config.eval.batch_size = 64, 2, 64
config.model.update(tower="openai", embed_dim=16, compute_dtype="float32", scan_layers=False)
config.model.vision.update(width=16, layers=1, heads=2, patch_size=32)
config.model.text.update(width=16, layers=1, heads=2, context_length=12)
graphdef, init, _ = make_model(config.model, 64)
params = jax.jit(init)(jax.random.key(0))

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

peaks = []
for size in sizes:
    dataset = open_dataset(f"wds:{folder / str(size)}")
    found = ZeroShot(config, graphdef, [dataset]).run(params)
    assert found[f"zeroshot/{size}/n"] == size
    peaks.append(peak())
print(json.dumps(peaks))
"""


def noise(seed: int) -> bytes:
    """An image that does not compress: 12 KB, as are its pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def peaks(environment: dict[str, str], folder: pathlib.Path, *sizes: int) -> list[float]:
    """Largest memory of a process after the evaluation of each of these many images, MiB."""
    images = [noise(seed) for seed in range(32)]
    for size in sizes:
        examples = [(f"{i:06d}", {"png": images[i % 32], "cls": str(i % 6).encode()}) for i in range(size)]
        write_wds(folder / str(size), examples, per_shard=size // 2)
    here = pathlib.Path(__file__).parents[1]
    environment = {**environment, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    command = [sys.executable, "-c", PROGRAM, str(folder), *map(str, sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's accounts of memory")
def test_eight_times_the_images_take_no_more_memory(tmp_path, one_device):
    _, small, large = peaks(one_device, tmp_path, 300, 500, 4000)
    assert large - small < 12  # the 3,500 images more are 42 MiB, encoded or decoded


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's accounts of memory")
def test_50000_images_take_no_more_memory_than_5000(tmp_path, one_device):
    _, small, large = peaks(one_device, tmp_path, 1000, 5000, 50_000)
    assert large - small < 0.05 * small  # names and guesses alone; the 45,000 more are 540 MiB
