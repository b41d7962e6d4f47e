"""The paper in miniature: a small CLIP on scenes of 32 pixels, made of real photographs or drawn from their captions.

    python -m gen.miniature --out=runs/world                                                  real scenes, test sets
    python -m gen --config=configs/miniature.py --workdir=W                                   synthetic pairs
    python -m synthclip_jax.train --config=configs/miniature.py:1600 --workdir=W              trained on 1,600 pairs
    python -m synthclip_jax.train --config=configs/miniature.py:1600,epochs=16 --workdir=W

What a run sees is constant by default: `seen` pairs, so that a small dataset is seen more often. With `epochs` each
pair is seen so many times instead. `configs/studies/miniature.py` is the study whose runs these are; docs/miniature.md
says what the world is.

`captions`: `all` that real scenes have, or the `short`, `medium` or `long` ones of them; `skewed`: each names a second
thing, few of them very often; `held`: without a kind of item and without some colours of others; `llm`: written by the
embedded language model, of which some are turned away.
"""

from gen.miniature.words import CONCEPTS, ITEMS, TINTS, templates
from synthclip_jax.config import OPENAI_MEAN, OPENAI_STD, default_config

SEEN = 256_000  # pairs
WORLD = "runs/world"
TEMPLATES = 600  # of the skewed captions
OUTSIDE = "sandal"  # an item that no caption of `held` names
NEAR = {item: tuple(TINTS)[place % len(TINTS)] for place, item in enumerate(ITEMS) if item != OUTSIDE}


# So small a language model needs examples; it is not asked for more than an item on a ground.
EXAMPLES = (
    ("red bag", "A red bag on a white background."),
    ("coat", "A warm coat in front of a grey wall."),
    ("blue ankle boot", "One blue ankle boot beside a yellow dress on a black background."),
    ("sneaker", "A photo of a sneaker on beige."),
)


def skewed_order() -> tuple[str, ...]:
    """The concepts, the one that skewed captions name most often first; kinds of items and colours are mixed."""
    return tuple(CONCEPTS[37 * place % len(CONCEPTS)] for place in range(len(CONCEPTS)))


def held_out() -> tuple[str, ...]:
    """What captions of `held` do not name: an item, and for each other item one colour of it."""
    return (OUTSIDE, *(f"{tint} {item}" for item, tint in NEAR.items()))


def texts(captions: str) -> tuple[str, ...]:
    """The templates of captions of a kind."""
    if captions == "skewed":
        weights = [1 / place for place in range(1, len(CONCEPTS) + 1)]
        counts = [max(1, round(TEMPLATES * weight / sum(weights))) for weight in weights]
        order = skewed_order()
        return tuple(
            f"the {{concept}} and the {name}" for name, count in zip(order, counts, strict=True) for _ in range(count)
        )
    if captions == "held":
        return tuple(text for text in templates() if not any(name in text for name in held_out()))
    return templates("all" if captions == "llm" else captions)


def get_config(size: str = "16000", epochs: str = "", seen: str = str(SEEN), captions: str = "all"):
    config = default_config()
    config.name = "miniature"
    passes = float(epochs) if epochs else int(seen) / int(size)

    gen = config.gen
    gen.concepts.update(sources=("lists",), lists=(f"{WORLD}/concepts.txt",))
    if captions == "held":
        gen.concepts.block_list = held_out()
    # The grammar of the real scenes' captions: what is equal there several times is more frequent, and stays so.
    gen.captions.update(engine="templates", templates=texts(captions), per_concept=178, max_words=60, filters=())
    if captions == "llm":
        gen.captions.update(engine="transformers", model="smollm2", dtype="bfloat16", templates=(), examples=EXAMPLES)
        gen.captions.update(prompt="Describe a picture of: {concept}", max_new_tokens=32, batch_size=128, max_words=18)
        gen.captions.filters = ("refusal", "concept", "length", "one_sentence")
    gen.balance.update(t=1e9, deduplicate=False)
    gen.images.update(model="miniature", generate_size=32, size=32, dtype="float32", jpeg_quality=95)
    gen.images.update(scheduler="dpmsolver++", steps=12, guidance=2.0, batch_size=100, shard_size=1000)
    gen.images.update(min_std=0.5, max_saturated=1.0)  # flat grounds of pure colour belong to this world

    config.data.update(image_size=32, mean=OPENAI_MEAN, std=OPENAI_STD, interpolation="bicubic", cache=True)
    config.data.update(crop_scale=(0.8, 1.0), part=int(size))
    config.model.update(tower="openai", embed_dim=96, compute_dtype="float32", scan_layers=False)
    config.model.vision.update(width=96, layers=4, heads=3, patch_size=8)
    config.model.text.update(width=96, layers=1, heads=3, context_length=36)
    config.train.update(batch_size=128, epochs=passes, warmup_epochs=0.05 * passes)
    config.train.update(optimizer="muon", learning_rate=1e-3, lr_end=1e-5, weight_decay=0.2)
    config.train.update(log_every=100, save_every=500, keep=1)
    config.eval.update(suites=("zeroshot", "retrieval"), batch_size=500)
    config.eval.datasets = tuple(f"{name}=wds:{WORLD}/test/{name}" for name in ("item", "colour_item", "retrieval"))
    return config
