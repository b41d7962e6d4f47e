"""`gen.plan` around the compiler of this process, in the place of one for chips that are not here."""

import dataclasses
import re

import jax
import pytest

from gen import plan
from gen.costs import ahead as parts_ahead
from gen.costs.published import UNET_TFLOP
from gen.engines.stable_diffusion.engine import check_size
from gen.engines.text_to_image import ImageModelError
from synthclip_jax.config import load_config
from synthclip_jax.plan import ahead
from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan.tiles import TiledProducts, tiled_products

# A pipeline of few channels, in the place of the files that `plan` writes for Stable Diffusion 1.5.
TINY = {
    "unet/config.json": {
        "cross_attention_dim": 32, "block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 16,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "vae/config.json": {"block_out_channels": [32, 64], "layers_per_block": 1},
    "text_encoder/config.json": {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    },
}  # fmt: skip
SMALL = ["--config=configs/synthci_3m.py", "--topology=v5e:4x4"]
SMALL += [f"--config.gen.images.{option}" for option in ("generate_size=32", "size=16", "safety=False", "batch_size=8")]
SMALL += ["--config.gen.images.dtype=bfloat16", "--config.gen.images.guidance_until=0.5"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The compiler is that of this process; the model is tiny; the cache is the test's own."""
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(ahead, "quiet_libtpu", lambda: None)
    monkeypatch.setattr(ahead, "make_devices", lambda topology: jax.devices("cpu")[:4])
    monkeypatch.setattr(plan, "version_of", lambda package: "0")
    for name, values in TINY.items():
        monkeypatch.setitem(plan.FILES, name, values)


def test_a_plan_says_what_fits_and_how_fast_it_can_be_and_compiles_once(capsys, monkeypatch, tmp_path):
    assert plan.main(SMALL) == 0
    first = capsys.readouterr()
    assert re.search(r"batch +of 2 images a chip fits: 0\.\d\d of 15\.75 GiB", first.out)  # 8 on the 4 chips of a host
    assert all(re.search(rf"\n{name} +25 ", first.out) for name in ("a guided step", "a step without guidance"))
    without, wholly = (float(x) for x in re.findall(r"([\d.]+) if (?:products|they)", first.out.replace(",", "")))
    assert 0 < without < wholly
    hours = float(re.search(r"3,000,000 images: ([\d.,]+) chip-hours", first.out)[1].replace(",", ""))
    assert hours == pytest.approx(3e6 / without / 3600, rel=0.1)
    assert first.err.count("compiling 'guided' for a cpu: done") == 1
    smallest = min((tmp_path / "cache" / "plans").iterdir(), key=lambda path: path.stat().st_size)
    smallest.write_bytes(smallest.read_bytes()[:-20])  # what is damaged is compiled again, and nothing else
    assert plan.main(SMALL) == 0
    again = capsys.readouterr()
    assert (again.out, again.err.count("done")) == (first.out, 1)
    monkeypatch.setattr(parts_ahead, "_Progress", None)  # whatever were compiled would fail
    assert plan.main(SMALL) == 0
    assert capsys.readouterr() == (first.out, "")


def test_scores_in_memory_are_found_and_those_on_the_chip_are_none():
    text = "bf16[16,4096,320]{2,1,0} bf16[8,4096,4096]{2,1,0:T(8,128)S(1)} f32[65536,4096]{1,0} f32[32768,5120]{1,0}"
    assert parts_ahead.largest_scores(text, 4096) == 65536 * 4096 * 4
    assert parts_ahead.largest_scores(text, 1024) == 65536 * 4096 * 4
    assert parts_ahead.largest_scores(text.replace("65536,4096", "65536,320"), 4096) == 0


def test_a_batch_that_does_not_fit_is_halved(capsys, monkeypatch):
    tried = []

    def parts(pipeline, images, batch, topology, device):
        tried.append(batch)
        fits = batch <= 2
        facts = parts_ahead.Facts(fits, 20 * 2**30, 2**30, 1e9, products=TiledProducts(1e12, 1e12))
        yield parts_ahead.Part("guided", 50, dataclasses.replace(facts, needed=2**31) if fits else facts)

    monkeypatch.setattr(parts_ahead, "parts", parts)
    assert plan.main([*SMALL, "--config.gen.images.batch_size=32"]) == 1
    out = capsys.readouterr().out
    assert tried == [8, 4, 2]
    assert "batch         of 8 images a chip does not fit: 20.00 of 15.75 GiB" in out
    assert out.endswith("verdict       fits in batches of 2 a chip, not of 8\n")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--topology=v5e:3x3", "v5e:3x3: no such machine"),
        ("--config.gen.images.dtype=float16", "dtype=float16: the flax engine draws in bfloat16 or float32"),
        ("--config.gen.images.model=nobody/nothing", "neither a folder nor a hub model"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_words(capsys, argument, message):
    assert plan.main([*SMALL, argument]) == 2
    assert message in capsys.readouterr().err


def test_a_pass_of_stable_diffusion_1_5_has_the_published_number_of_products(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    images = load_config("configs/synthci_3m.py", ["gen.images.dtype=bfloat16", "gen.images.safety=False"]).gen.images
    pipeline, where = plan.read(images)
    assert where.startswith("Stable Diffusion 1.5")
    assert sum(leaf.size for leaf in jax.tree.leaves(pipeline.params["unet"])) == 859_520_964
    with pytest.raises(ImageModelError, match=r"generate_size=520: .* multiples of 64"):
        check_size(pipeline, 520)
    device = jax.devices("cpu")[0]
    function, given = parts_ahead.functions(pipeline, images, 1, device)["guided"]
    counted = tiled_products(jax.make_jaxpr(function)(*given), Topology.parse("v5e:1x1").chip.tile)
    assert counted.written / 2e12 == pytest.approx(UNET_TFLOP[512], rel=0.01)
    assert 1.2 < counted.tiled / counted.written < 1.6  # heads of 40 and 320 channels fill units of 128 badly
