"""Engines by name: one line each, classes that say what is known before a model is loaded."""

import subprocess
import sys

import pytest

from gen.engines.interface import CaptionEngine, ImageEngine, VisionEngine
from gen.engines.registry import caption_engine, image_engine, make_caption_engine, vision_engine
from synthclip_jax.config import ConfigError, check, default_config
from synthclip_jax.config.registry import CAPTION_ENGINES, IMAGE_ENGINES, SIZE_STEP, VISION_ENGINES, WITHOUT_MODEL

KINDS = [
    ("captions", caption_engine, CAPTION_ENGINES, CaptionEngine),
    ("images", image_engine, IMAGE_ENGINES, ImageEngine),
    ("recaption", vision_engine, VISION_ENGINES, VisionEngine),
]


@pytest.mark.parametrize(("section", "of", "engines", "base"), KINDS)
def test_every_engine_has_a_class_that_says_what_is_known_before_it_is_loaded(section, of, engines, base):
    for name in engines:
        settings = default_config().gen[section]
        settings.engine = name
        kind = of(settings)
        assert issubclass(kind, base)
        assert kind.identity(settings)["engine"] == name
        assert kind.gpus(settings) in (0, 1)
        assert kind.credit(settings)


def test_asking_what_engines_there_are_loads_no_library_of_models():
    code = (
        "import sys, pkgutil; import gen.engines.registry\n"
        "from synthclip_jax.config.registry import CAPTION_ENGINES, IMAGE_ENGINES, VISION_ENGINES\n"
        "for name in [*CAPTION_ENGINES.values(), *IMAGE_ENGINES.values(), *VISION_ENGINES.values()]:\n"
        "    pkgutil.resolve_name(name)\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'vllm', 'jax', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_traits_are_of_engines_that_there_are():
    assert WITHOUT_MODEL.keys() <= CAPTION_ENGINES.keys() | IMAGE_ENGINES.keys()
    assert SIZE_STEP.keys() <= IMAGE_ENGINES.keys()


def test_traits_say_what_is_checked(monkeypatch):
    monkeypatch.setitem(IMAGE_ENGINES, "strides", f"{__name__}:Parrot")
    monkeypatch.setitem(CAPTION_ENGINES, "parrot", f"{__name__}:Parrot")
    config = default_config()
    config.gen.images.update(engine="strides", generate_size=12)
    config.gen.captions.update(engine="parrot", prompt="{concept} {others}")
    with pytest.raises(ConfigError, match=r"gen.captions.prompt: .* without \{others\}"):
        check(config)
    monkeypatch.setitem(WITHOUT_MODEL, "parrot", "a parrot")
    check(config)
    monkeypatch.setitem(SIZE_STEP, "strides", 8)
    with pytest.raises(ConfigError, match=r"generate_size: given 12, allowed: a multiple of 8"):
        check(config)


class Parrot(CaptionEngine):
    """Says the concept."""

    def __init__(self, captions):
        self.greeting = captions.system

    def generate(self, conversations, seeds):
        for index, messages in enumerate(conversations):
            yield index, f"{self.greeting} {messages[-1]['content']}"


def test_an_engine_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(CAPTION_ENGINES, "parrot", f"{__name__}:Parrot")
    captions = default_config().gen.captions
    captions.update(engine="parrot", system="hello", prompt="{concept}")
    engine = make_caption_engine(captions)
    question = engine.conversation(captions, "dog")
    assert dict(engine.generate([question], [0])) == {0: "hello dog"}
    assert (engine.shards_at_once(captions), engine.is_random(captions)) == (1, True)
    engine.close()
