"""What people install: an sdist and a wheel, what is in them, and the wheel at work outside the checkout.

`make package` runs it. The wheel is installed into an environment of its own, which sees the packages that it needs in
the one that the tests run in, but neither the checkout nor an editable install of it.
"""

import ast
import email
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator

import pytest
from toy_flags import TINY_MODEL

from synthclip_jax.console import COMMANDS

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    "--config.gen.concepts.limit=8",
    "--config.gen.captions.per_concept=2",
    "--config.gen.images.per_caption=4",
    "--config.train.batch_size=16",
    "--config.train.epochs=2",
    *TINY_MODEL,
    "--config.eval.datasets=composites=wds:testsets/composites",
    "--config.eval.suites=zeroshot",
]


def run(*command: object, cwd: pathlib.Path = ROOT) -> str:
    """What a command prints; of this process's environment it knows nothing that would lead it to the checkout."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(folder: pathlib.Path, *what: str) -> pathlib.Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *what, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The wheel, made from the checkout."""
    (file,) = build(tmp_path_factory.mktemp("wheel"), "--wheel").iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """The sdist, and the wheel that is made from it."""
    folder = build(tmp_path_factory.mktemp("sdist"))
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def contents(file: pathlib.Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def files(wheel) -> dict[str, bytes]:
    return contents(wheel)


@pytest.fixture(scope="module")
def about(files) -> email.message.Message:
    return email.message_from_bytes(next(text for name, text in files.items() if name.endswith("/METADATA")))


def test_the_wheels_top_level_names_are_ours(files, about):
    info = f"synthclip_jax-{about['Version']}.dist-info"
    assert {name.partition("/")[0] for name in files} == {"synthclip_jax", "synthclip_gen", info}
    assert files[f"{info}/top_level.txt"].decode().split() == ["synthclip_gen", "synthclip_jax"]
    scripts = re.findall(r"^([\w-]+) = synthclip_jax\.console:\w+$", files[f"{info}/entry_points.txt"].decode(), re.M)
    assert sorted(scripts) == sorted(COMMANDS)


def test_the_wheel_has_every_file_of_the_packages_and_the_configs(files):
    listed = run("git", "ls-files", "gen", "synthclip_jax", "configs").split()
    names = [re.sub("^gen/", "synthclip_gen/", re.sub("^configs/", "synthclip_jax/configs/", name)) for name in listed]
    assert [name for name in names if name not in files] == []
    for name in ("miniature/model/unet/diffusion_pytorch_model.safetensors", "held_out/noto_color/LICENSE.txt"):
        assert files[f"synthclip_gen/{name}"] == (ROOT / "gen" / name).read_bytes()
    assert sum(name.startswith("synthclip_gen/held_out/noto_color/") for name in files) > 100


def named(source: str) -> Iterator[str]:
    """Modules that a module imports, and those of import strings in it (`gen.finalize:run`)."""
    place = re.compile(r"((?:gen|synthclip_gen|synthclip_jax)(?:\.\w+)+):\w+")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Constant) and (found := place.fullmatch(str(node.value))):
            yield found[1]


def test_the_wheel_names_no_gen_and_only_modules_that_are_there(files):
    modules = {re.sub(r"(/__init__)?\.py$", "", name).replace("/", ".") for name in files if name.endswith(".py")}
    ours = 0
    for file, content in files.items():
        for module in named(content.decode()) if file.endswith(".py") else ():
            assert module.partition(".")[0] != "gen", f"{file}: {module}"
            if module.startswith("synthclip_"):
                assert module in modules, f"{file}: {module}"
                ours += 1
        if file.endswith((".py", ".md", ".json", ".js", ".txt")):
            assert not re.search(r"python -m\s+gen\b", content.decode()), file
    assert ours > 1000


def test_the_sdist_is_the_repository_and_makes_the_same_wheel(sdist, wheel, files):
    archive, made = sdist
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    assert set(run("git", "ls-files").splitlines()) <= packed
    assert made.name == wheel.name
    assert contents(made) == files


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> pathlib.Path:
    """The folder of programs of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = pathlib.Path(importlib.util.find_spec("jax").origin).parents[1]
    # Its own .pth files, of the editable install, are not read: those of packages in a .pth's folder never are.
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin"


def test_the_installed_package_is_the_wheels(programs, about, tmp_path):
    program = (
        "import importlib.util, synthclip_gen, synthclip_jax; from synthclip_jax.console import GENERATION\n"
        "print(synthclip_gen.__file__, synthclip_jax.__file__, GENERATION, synthclip_jax.__version__)\n"
        "print(importlib.util.find_spec('gen'))"
    )
    ours, trainer, *rest = run(programs / "python", "-c", program, cwd=tmp_path).split()
    assert pathlib.Path(ours).is_relative_to(programs.parent)
    assert pathlib.Path(trainer).is_relative_to(programs.parent)
    assert rest == ["synthclip_gen", about["Version"], "None"]


def test_the_quickstart_runs_by_the_names_of_commands(programs, tmp_path):
    places = ["--config=quickstart", "--workdir=w", *SMALL]
    for name in ("gen", "gen-testsets", "train", "evaluate"):
        run(programs / f"synthclip-{name}", *places, cwd=tmp_path)
    verified = run(programs / "synthclip-gen-verify", "--workdir=w", "--processes=1", cwd=tmp_path)
    assert verified.endswith(": 0 faults\n"), verified
    (result,) = (tmp_path / "w" / "eval").glob("*.json")
    assert json.loads(result.read_text())["metrics"]["zeroshot/composites/n"] > 0


def test_a_cell_of_a_study_starts_generation_by_the_name_that_it_has_there(programs, tmp_path):
    (tmp_path / "one.py").write_text(
        "from synthclip_jax.study import Cell, Step, Study\n"
        "def get_study():\n"
        "    flags = ('--config=quickstart', '--workdir={cell}', '--stages=concepts')\n"
        "    return Study('one', 'is there a bank?', (Cell('bank', {}, (Step('gen', flags),)),))\n"
    )
    said = run(programs / "synthclip-study", "--study=one.py", "--workdir=s", cwd=tmp_path)
    assert "1 of 1 cells are done" in said
    assert (tmp_path / "s" / "cells" / "bank" / "gen" / "concepts" / "bank.jsonl").exists()


def test_a_study_that_comes_with_the_wheel_is_found_with_its_configs_and_rates(programs, tmp_path):
    said = run(programs / "synthclip-study", "--study=paper:tables", "--workdir=s", "--dry-run", cwd=tmp_path)
    assert "synthclip-gen --config=configs/synthci_30m.py" in said
    assert "benchmarks/results/nvidia-h100-80gb-hbm3/train_step.json" in said
