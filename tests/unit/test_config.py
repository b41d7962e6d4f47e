"""Configs: every mistake stops before work, with the key, what was given, what is allowed, the nearest right name."""

import math
import pathlib
import re
import subprocess
import sys
import typing

import pytest

from gen.engines.samplers import Sampler, sampler_of
from synthclip_jax.config import ConfigError, check, default_config, digest, from_plain, load_config, load_saved, plain
from synthclip_jax.config.fields import Section
from synthclip_jax.config.schema import Config
from synthclip_jax.config.sources import parse_sources

CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    config = load_config(path)
    assert config.name == path.stem


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("cc3m.py:500k", {"data.part": 500_000, "train.epochs": 40}),
        ("cc12m.py:0.5M", {"data.part": 500_000, "train.learning_rate": 5e-4}),
        ("finetune_real.py:0.5M", {"data.part": 500_000, "train.epochs": 5, "train.batch_size": 4096}),
        ("finetune_real.py:2M,epochs=10", {"data.part": 2_000_000, "train.epochs": 10, "train.learning_rate": 5e-5}),
        ("finetune_real.py:8.8M,10", {"data.part": 1.0, "train.epochs": 10}),
        ("finetune_real.py", {"data.part": 1.0, "train.init_from": "runs/synthci_30m"}),
    ],
)
def test_what_stands_behind_a_configs_colon_is_given_to_it(argument, expected):
    config = load_config(f"configs/{argument}", ["data.interpolation=bicubic"])
    for key, value in expected.items():
        section, name = key.split(".")
        assert config[section][name] == value, key
    assert config.data.interpolation == "bicubic"


def test_the_mixed_config_takes_the_papers_shares_as_numbers_or_as_weights():
    real, synthetic = parse_sources(load_config("configs/mixed.py").data)
    assert (real.part, synthetic.part) == (1.0, 11_200_000)
    assert (real.weight, synthetic.weight) == (None, None)
    real, synthetic = parse_sources(load_config("configs/mixed.py:real=2M,synthetic=8M,weight=0.7").data)
    assert (real.part, synthetic.part) == (2_000_000, 8_000_000)
    assert (real.weight, synthetic.weight) == pytest.approx((0.7, 0.3))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cc12m.py:many", "size: given 'many', allowed: a number of thousands or millions, such as 500k or 8.8M"),
        ("cc12m.py:amount=2M", "unexpected keyword argument 'amount'"),
        ("synthci_3m.py:2M", "takes 0 positional arguments"),
        ("mixed.py:weight=most", "could not convert string to float"),
        ("cc14m.py:2M", "no such file. Did you mean configs/cc12m.py"),
    ],
)
def test_a_config_says_what_it_does_not_take(argument, message):
    with pytest.raises(ConfigError, match=message):
        load_config(f"configs/{argument}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batchsize", 3, r"train\.batchsize: unknown key \(given 3\)\. Did you mean train\.batch_size\?"),
        ("gen.captions.max_word", 3, r"Did you mean gen\.captions\.max_words\?"),
        ("train.epochs", "many", r"train\.epochs: given 'many' \(str\), allowed: a number of at least 0"),
        ("train.epochs", float("inf"), r"train\.epochs: given inf, allowed: a number of at least 0, finite"),
        ("gen.balance.t", float("inf"), r"gen\.balance\.t: given inf, allowed: a number of at least 0, finite"),
        ("gen.images.guidance", float("nan"), r"gen\.images\.guidance: given nan, allowed: .*, finite"),
        ("gen.captions.top_p", 0.0, r"gen\.captions\.top_p: given 0\.0, allowed: a number from 1e-06 to 1"),
        ("gen.recaption.top_p", 0.0, r"gen\.recaption\.top_p: given 0\.0, allowed: a number from 1e-06 to 1"),
        ("gen.captions.temperature", 1e-9, r"gen\.captions\.temperature: given 1e-09, allowed: 0 .* 0\.01"),
        ("gen.captions.chat_template_kwargs", ("enable_thinking", False), r"chat_template_kwargs: given .* a tuple of"),
        (
            "gen.captions.chat_template_kwargs",
            (("enable_thinking",),),
            r"chat_template_kwargs: given .* allowed: pairs",
        ),
        ("gen.captions.chat_template_kwargs", (("a", None),), r"chat_template_kwargs: given .* allowed: pairs"),
        (
            "gen.recaption.chat_template_kwargs",
            (("tokenize", True),),
            r"recaption\.chat_template_kwargs: .* own template",
        ),
        ("train.batch_size", 1.5, r"train\.batch_size: given 1\.5 \(float\), allowed: an integer of at least 1"),
        ("train.batch_size", True, r"train\.batch_size: given True \(bool\)"),
        ("train.learning_rate", float("nan"), r"train\.learning_rate: given nan"),
        ("gen.images.scheduler", "dimm", r"allowed: one of 'ddim'.*Did you mean 'ddim'\?"),
        ("data.crop_scale", (0.5, 1.5), r"data\.crop_scale: given \(0\.5, 1\.5\), allowed: a tuple of 2 items"),
        ("data.mean", (0.5,), r"data\.mean: .*allowed: a tuple of 3 items"),
        ("gen.concepts.sources", ("wordnt",), r"Did you mean 'wordnet'\?"),
        ("train.epochs", float("inf"), r"train\.epochs: given inf, allowed: a number of at least 0"),
        ("train.grad_clip", float("inf"), r"train\.grad_clip: given inf"),
        ("gen.balance.t", float("inf"), r"gen\.balance\.t: given inf"),
        (
            "data.mean",
            (123.675, 116.28, 103.53),
            r"data\.mean: .*allowed: a tuple of 3 items, each a number from 0 to 1",
        ),
        ("data.std", (58.395, 57.12, 57.375), r"data\.std: .*each a number from 1e-06 to 1"),
        ("train.batch_size", 1, r"train\.batch_size: given 1, allowed: at least 2 with train\.loss='softmax'"),
    ],
)
def test_wrong_name_type_or_value_is_named_with_what_is_allowed(key, value, message):
    config = default_config()
    section, _, name = key.rpartition(".")
    node = config
    for part in section.split("."):
        node = node[part]
    node[name] = value
    with pytest.raises(ConfigError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gen.balance.t": 0.0}, "exactly one of the three"),
        ({"gen.balance.target_size": 100}, "exactly one of the three"),
        ({"gen.captions.prompt": "no slot"}, r"contains \{concept\}"),
        ({"gen.captions.min_words": 30}, r"at most gen\.captions\.max_words \(15\)"),
        ({"gen.captions.examples": (("dog",),)}, "pairs"),
        ({"gen.images.generate_size": 100}, "multiple of 8"),
        (
            {"gen.ray.images.workers_min": 4, "gen.ray.images.workers_max": 2},
            r"at most gen\.ray\.images\.workers_max \(2\)",
        ),
        ({"gen.concepts.sources": ("lists",)}, r"gen\.concepts\.lists: empty"),
        ({"gen.concepts.lists": ("x.txt",)}, r"lacks 'lists'"),
        ({"model.vision.heads": 7}, r"divisor of model\.vision\.width \(768\)"),
        ({"model.vision.patch_size": 15}, r"divisor of data\.image_size \(224\)"),
        ({"train.warmup_epochs": 50.0}, r"at most train\.epochs"),
        ({"train.lr_end": 1.0}, r"at most train\.learning_rate"),
        ({"train.cooldown": 0.2}, r"allowed: 0 with train\.schedule='cosine'"),
        ({"train.cooldown": 0.98, "train.schedule": "constant"}, r"at most 0\.975, the rest is warm-up"),
        ({"train.mesh.fsdp": -1}, "at most one -1"),
        ({"train.mesh.tensor": 0}, r"train\.mesh\.tensor: given 0"),
        ({"train.no_decay": ("(",)}, "no regular expression"),
        ({"train.frozen": ("(",)}, r"train\.frozen: given '\(', which is no regular expression"),
        ({"train.learning_rate_multipliers": (("visual", 0.0),)}, r"belongs into train\.frozen"),
        ({"train.learning_rate_multipliers": (("visual",),)}, "pairs"),
        ({"train.loss": "sigmoid"}, r"model\.logit_bias: given False, allowed: True"),
        ({"train.microbatch": 1000}, r"divisor of train\.batch_size \(4096\)"),
        ({"train.keep_best": "zeroshot/x/acc1"}, r"eval\.datasets"),
        ({"train.profile": (0, 5)}, "counted from 1"),
        ({"train.profile": (7, 5)}, r"\(first, last\)"),
        ({"eval.datasets": ("imagenet",)}, r"'wds:FOLDER'"),
        ({"name": "My Run"}, "lower-case letter"),
        ({"gen.version": "1"}, "MAJOR.MINOR.PATCH"),
    ],
)
def test_impossible_combinations_are_named(changes, message):
    config = default_config()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        node = config
        for part in section.split(".") if section else ():
            node = node[part]
        node[name] = value
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_all_problems_are_listed_at_once():
    config = default_config()
    config.train.epochs, config.seed, config.nmae = "x", -1, "y"
    with pytest.raises(ConfigError, match="3 problems"):
        check(config)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=64", 64),
        ("train.learning_rate=1e-3", 1e-3),
        ("train.epochs=2", 2),
        ("model.scan_layers=true", True),
        ("data.mean=(0.1,0.2,0.3)", (0.1, 0.2, 0.3)),
        ("eval.datasets=wds:a,folder:b", ("wds:a", "folder:b")),
        ("eval.datasets=", ()),
        ("gen.captions.prompt=about {concept}=x", "about {concept}=x"),
    ],
)
def test_overrides_take_the_type_of_the_value(override, expected):
    node = load_config("configs/quickstart.py", [override])
    for part in override.partition("=")[0].split("."):
        node = node[part]
    assert node == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_sise=64", r"Did you mean train\.batch_size\?"),
        ("train.batch_size=many", r"given 'many', allowed: an integer"),
        ("model.scan_layers=1", "allowed: true, false"),
        ("train=1", "a section, not a value"),
        ("train.batch_size=0", "of at least 1"),
    ],
)
def test_wrong_overrides_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("configs/quickstart.py", [override])


def test_a_missing_config_file_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean configs/quickstart\.py\?"):
        load_config("configs/quikstart.py")


def test_configs_that_come_along_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").name == "quickstart"
    assert load_config("cc12m:2M").data.part == 2_000_000
    assert load_config("configs/mixed.py:real=2M").name == "mixed"  # as the pages and the studies write it
    (tmp_path / "quickstart").mkdir()  # a workdir, say
    assert load_config("quickstart").name == "quickstart"
    mine = "from synthclip_jax.config import default_config\ndef get_config():\n    return default_config()\n"
    (tmp_path / "quickstart.py").write_text(mine)
    assert load_config("quickstart.py").name != "quickstart"  # a file of that path comes first


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "quikstart",
            "--config=quikstart: neither a file nor a name that comes with the package. Did you mean quickstart? The"
            " names are cc12m, cc3m, finetune_real, miniature, mixed, quickstart, synthci_30m, synthci_3m",
        ),
        ("cc14m:2M", "--config=cc14m: neither a file nor a name that comes with the package. Did you mean cc12m?"),
        ("configs/quikstart.py", "--config=configs/quikstart.py: no such file. Did you mean configs/quickstart.py?"),
        ("elsewhere/quickstart.py", "--config=elsewhere/quickstart.py: no such file"),
    ],
)
def test_a_config_that_does_not_come_along_is_named_with_those_that_do(argument, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}"):
        load_config(argument)


def test_a_config_file_with_a_wrong_section_is_a_config_error(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from synthclip_jax.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.trian.epochs = 1\n    return c\n"
    )
    with pytest.raises(ConfigError, match="trian"):
        load_config(path)


def test_a_saved_config_comes_back_equal():
    config = load_config("configs/quickstart.py")
    assert digest(from_plain(plain(config))) == digest(config)
    assert from_plain(plain(config)).gen.captions.examples == config.gen.captions.examples


def test_the_paper_config_has_the_papers_values():
    config = load_config("configs/synthci_30m.py")
    assert (config.train.batch_size, config.train.epochs, config.train.warmup_epochs) == (4096, 40, 1)
    assert (config.train.learning_rate, config.train.lr_start, config.train.lr_end) == (5e-4, 1e-6, 1e-5)
    assert (config.train.beta1, config.train.beta2, config.train.eps, config.train.weight_decay) == (
        0.9,
        0.98,
        1e-8,
        0.5,
    )
    assert sampler_of(config.gen.images) == Sampler("ddim", 50, 2.0)
    assert (config.gen.captions.temperature, config.gen.captions.top_p) == (0.7, 0.95)
    assert config.data.crop_scale == (0.5, 1.0)
    assert math.isclose(config.train.logit_scale_max, 4.6052, abs_tol=1e-4)


def test_importing_the_packages_pulls_in_nothing_heavy():
    code = (
        "import sys, gen, gen.shards.store, gen.shards.executor\n"
        "import synthclip_jax, synthclip_jax.config, synthclip_jax.data.records\n"
        "heavy = {'jax', 'torch', 'tensorflow', 'transformers', 'diffusers', 'vllm', 'orbax', 'flax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("key", ["train.wandb", "train.init_from", "train.keep_best", "data.path", "gen.version"])
@pytest.mark.parametrize("text", ["None", "none", "null", "False", "false", "'None'", "''"])
def test_a_text_that_says_nothing_is_no_name_of_a_project_or_a_folder(key, text):
    with pytest.raises(ConfigError, match=f"{key}: given .*leave it empty for none: --config.{key}="):
        load_config("configs/quickstart.py", [f"{key}={text}"])
    section, name = key.split(".")
    assert load_config("configs/quickstart.py", [f"{key}="])[section][name] == ""


def test_sigmoid_loss_takes_batches_of_one():
    overrides = ["train.batch_size=1", "train.loss=sigmoid", "model.logit_bias=true"]
    assert load_config("configs/quickstart.py", overrides).train.batch_size == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", r"it has no function get_config\(\)"),
        ("def get_conf():\n    return 1", r"it has no function get_config\(\).*Did you mean to call get_conf so\?"),
        ("get_config = 3", r"it has no function get_config\(\)"),
        ("def get_config():\n    return None", r"get_config\(\) returns None\. It must change and return"),
        ("def get_config():\n    return {'seed': 1}", r"get_config\(\) returns \{'seed': 1\}"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("import not_there\n", "line 1: ModuleNotFoundError: No module named 'not_there'"),
        ("def get_config():\n    return nothing", "line 2: NameError: name 'nothing' is not defined"),
        ("def get_config(:", "invalid syntax"),
        ("\0", "null"),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said_in_a_line(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_config_saved_with_weights_is_checked_when_it_is_read():
    saved = plain(load_config("configs/quickstart.py"))
    assert plain(load_saved(saved)) == saved
    for change in (
        lambda config: config["data"].update(mean=[4.485, 0.456, 0.406]),
        lambda config: config["model"].update(quick_gelv=True),
        lambda config: config["model"]["vision"].update(heads=0),
        lambda config: config["model"]["vision"].update(layers="many"),
        lambda config: config["model"].update(text=[]),
        lambda config: config.update(extra={"key": 1}),
        lambda config: config.pop("data") and config.update(data=7),
    ):
        changed = plain(saved)
        change(changed)
        with pytest.raises(ConfigError):
            load_saved(changed)
    for other in (None, [], "config", 3):
        with pytest.raises(ConfigError):
            load_saved(other)


def test_what_generation_was_told_does_not_keep_weights_from_being_used():
    saved = plain(load_config("configs/quickstart.py"))
    saved["gen"]["captions"]["language"] = "a language of tomorrow"
    saved["train"]["batch_size"] = 1
    load_saved(saved)


def sections(section=Config):
    yield section
    for hint in typing.get_type_hints(section).values():
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from sections(hint)


def test_every_default_has_the_type_that_its_annotation_says():
    for section in sections():
        for name, hint in typing.get_type_hints(section).items():
            field = getattr(section, name, None)
            if field is None:
                assert issubclass(hint, Section)
            else:
                assert type(field.default) is (typing.get_origin(hint) or hint), f"{section.__name__}.{name}"


def test_lint_finds_a_misspelt_key(tmp_path):
    pytest.importorskip("mypy")
    lines = ("import synthclip_jax.config.schema as s", "def f(c: s.Config) -> int: return c.train.{}")
    files = {key: tmp_path / f"{key}.py" for key in ("microbatch", "microbacth")}
    for key, file in files.items():
        file.write_text("\n".join(lines).format(key))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), *map(str, files.values())]
    result = subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True)
    assert '"Train" has no attribute "microbacth"; maybe "microbatch"?' in result.stdout
    assert "Found 1 error in 1 file (checked 2 source files)" in result.stdout
