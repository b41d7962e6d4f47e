"""The embedded default: the whole pipeline on a 2-core machine in minutes, with nothing to download but packages.

    python -m gen --config=configs/quickstart.py --workdir=runs/quickstart
    python -m synthclip_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

It is the paper's pipeline with two small models in it: SmolLM2-135M writes the captions, `sprites` draws them. What
differs from the paper beside size is said where it differs. `make quickstart` runs all of it and the evaluation.
"""

from synthclip_jax.config import OPENAI_MEAN, OPENAI_STD, default_config


def get_config():
    config = default_config()
    config.name = "quickstart"

    gen = config.gen
    # 114 common nouns that look unlike each other; --config.gen.concepts.sprites=all takes all that can be drawn.
    gen.concepts.update(sources=("sprites",), sprites="core")
    # So small a model needs examples: they keep it short, and make it name places, companions and counts.
    gen.captions.update(
        engine="transformers",
        model="smollm2",
        dtype="bfloat16",
        prompt="Describe a picture of: {concept}",
        examples=(
            ("tree", "Two tall trees stand on a sandy beach under a blue sky."),
            ("potato", "A potato beside a knife on a wooden table."),
            ("bird", "A small bird sits with a cat in the snow."),
            ("wagon", "An old wagon rolls past a sheep in a field."),
            ("spoon", "Three spoons next to an orange on a white background."),
            ("alien", "A tiny alien floats in outer space near a planet."),
            ("ball", "A ball lies on a city street in the rain."),
            ("truck", "A truck by the ocean at sunset."),
        ),
        per_concept=8,
        max_new_tokens=32,
        batch_size=128,
        min_words=4,
        max_words=18,
        shard_size=256,
    )
    # The sprites know no case, and captions begin with their concept: "Dogs play ..." names a dog.
    gen.balance.update(t=10.0, fold_case=True)
    gen.images.update(engine="sprites", size=64, jpeg_quality=90, per_caption=12, shard_size=1024)

    config.data.update(image_size=64, mean=OPENAI_MEAN, std=OPENAI_STD, interpolation="bicubic")
    config.data.update(crop_scale=(0.9, 1.0), flip=0.5, grayscale=0.1, cache=True)
    # An OpenAI tower of any size loads in stock open_clip and transformers.
    config.model.update(tower="openai", embed_dim=128, compute_dtype="float32", scan_layers=False)
    config.model.vision.update(width=128, layers=4, heads=4, patch_size=16)
    config.model.text.update(width=64, layers=1, heads=4, context_length=20)
    config.train.update(batch_size=128, epochs=18, warmup_epochs=1, learning_rate=1.5e-3, weight_decay=0.2)
    config.train.update(log_every=20, save_every=200)
    config.eval.datasets = (
        "composites=wds:testsets/composites",
        "noto_color=wds:testsets/noto_color",
        "noto_outline=wds:testsets/noto_outline",
        "scenes=wds:testsets/scenes",
        "choices=wds:testsets/choices",
    )
    config.eval.suites = ("zeroshot", "retrieval", "linear_probe", "fewshot", "embedding")
    config.eval.suites += ("compositional", "corruptions")
    # All 15 kinds at the middle severity, one image of every second class: seconds.
    config.eval.corruptions.update(severities=(3,), images=57)
    # So few images are fitted well before the paper's 1,000 iterations.
    config.eval.linear_probe.max_iter = 200
    return config
