"""docs/extending.md, done exactly as it says: each file where it says, each line in the registry; and used."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

for package in ("pyarrow", "tensorflow_datasets"):
    pytest.importorskip(package)

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
LINES = re.findall(r"`([A-Z_]+)`: `(\"[^`]+\")`", PAGE)

# Uses all of them, in a process of its own that sees the packages with the additions.
PROGRAM = """
import pathlib, sys
import jax, jax.numpy as jnp, ml_collections, numpy as np
import toy_config, toy_generation
from synthclip_jax.config import check
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.stream import open_dataset
from synthclip_jax.evaluate import evaluate
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.towers import make_model
from synthclip_jax.study.driver import definitions
from synthclip_jax.study.load import load_study
from synthclip_jax.study.store import Store
from synthclip_jax.training.claim import describe_run
from synthclip_jax.training.optim import Length, make_optimizer

place = pathlib.Path(sys.argv[1])

config = ml_collections.ConfigDict(toy_generation.toy_config())
config.gen.captions.engine, config.gen.images.engine = "echo", "noise"
check(config)
toy_generation.generate(place / "w", ml_collections.FrozenConfigDict(config))
folder = place / "w" / "dataset" / config.name / "1.0.0"
reader = open_reader(SourceSpec("tfrecord", str(folder), None, "image", "caption"))
assert reader[0].captions[0].startswith("A photo of a "), reader[0].captions

pairs, flat = place / "pairs", place / "flat"
pairs.mkdir(), flat.mkdir()
for index in range(len(reader)):
    (pairs / f"{index}.jpg").write_bytes(reader[index].image)
    (pairs / f"{index}.txt").write_text(reader[index].captions[0])
    (flat / f"{'ab'[index % 2]}_{index}.jpg").write_bytes(reader[index].image)

config = toy_config.get_config()
config.name = "toy"
config.data.sources = (f"side_by_side:{pairs}",)
config.eval.datasets, config.eval.suites = (f"flat:{flat}",), ("length",)
config.train.optimizer = "sgd"
check(config)
found = open_dataset(config.data, "")
assert len(found) == len(reader), len(found)

init = make_model(config.model, config.data.image_size).init
params = jax.jit(init)(jax.random.key(0))
optimizer, _ = make_optimizer(config.train, Length.of(config.train, 96))
updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
np.testing.assert_allclose(updates["logit_scale"], -config.train.lr_start)  # against the gradient, which is 1

checkpoints = Checkpoints(checkpoint_folder(place / "w"), keep=1)
about = {**describe_run(config, 96, "77aa"), "progress": {"examples_seen": 96}}
checkpoints.save(1, params, {"step": jnp.int32(1)}, about)
checkpoints.close()
study = load_study(place / "configs" / "studies" / "seeds.py")
assert len(definitions(study, Store(place / "study"))) == 7

numbers = evaluate(config, place / "w")
assert numbers["length/flat/n"] == len(reader), numbers
assert numbers["length/flat/mean"] > 1, numbers
"""


def test_every_file_is_short_and_every_line_is_there():
    assert len(FILES) == 7
    assert len(LINES) == 6  # a study has none
    for name, text in FILES.items():
        assert len([line for line in text.splitlines() if line]) <= 20, name


def test_a_toy_of_each_is_added_as_the_page_says_and_used(tmp_path, one_device):
    for package in ("gen", "synthclip_jax", "configs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (tmp_path / name).exists(), f"{name}: taken"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    registry = tmp_path / "synthclip_jax" / "config" / "registry.py"
    for name, line in LINES:
        before = registry.read_text()
        registry.write_text(before.replace(f"{name} = {{\n", f"{name} = {{\n    {line},\n"))
        assert registry.read_text() != before, f"no {name} in the registry"
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", str(tmp_path)]
    environment = {**one_device, "PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
