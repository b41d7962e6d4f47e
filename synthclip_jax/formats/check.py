"""Checks an export: what lies in the folder computes what the checkpoint computes.

First the files are read back by our own reader, which must find the same architecture, the same preprocessing and bit
for bit the same parameters. Then, where open_clip or transformers can be imported, they load the folder as a user
would, and their features and pixels are compared with ours on random images and texts.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image

from synthclip_jax import config as config_lib
from synthclip_jax.errors import UserError
from synthclip_jax.formats.foreign import read_foreign
from synthclip_jax.model.loading import LoadedModel
from synthclip_jax.model.preprocess import Preprocess
from synthclip_jax.model.towers import make_model
from synthclip_jax.text.tokenizer import Tokenizer

FEATURES = 1e-4  # largest difference of an embedding's values
PIXELS = 1 / 255  # of a pixel between 0 and 1
TEXTS = (
    *("a photo of a dog", "two red kites over a frozen lake", "naïve café, 3 o'clock", "x"),
    # What CLIP's cleaning changes, and a tokenizer has to as well.
    *("a dog’s “bone” — on the table…", "salt &amp; pepper", "a ﬁne ＣＡＴ"),
)


class ExportMismatch(UserError, RuntimeError):
    """An export computes something else than the checkpoint; nothing was put into its place."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What a library made of an export.

    Attributes:
      by: the library and its version, or `our own reader`.
      features, pixels: largest differences from ours; None where they were not computed.
      note: why the library itself did not look.
    """

    by: str
    features: float | None = None
    pixels: float | None = None
    note: str = ""


def check_export(folder: pathlib.Path, model: LoadedModel, formats: Sequence[str], log: Any) -> list[Check]:
    """Checks every format in a folder.

    Raises:
      ExportMismatch: names the format and the difference.
    """
    images, ours = _images(model.config.data.image_size), None
    checks = []
    for name in formats:
        _check_files(folder, model, name)
        library: Callable[..., Any] = _by_open_clip if name == "open_clip" else _by_transformers
        try:
            features = library(folder, images, list(TEXTS))
        except (ImportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_about_importing(error):
                raise ExportMismatch(f"{name} does not load what was written: {error}") from error
            note = f"{name} cannot be imported here ({' '.join(str(error).split())[:150]})"
            checks.append(Check("our own reader", note=note))
            log(f"{name}: read back, parameters are bit for bit the same; {note}")
            continue
        ours = ours or _by_us(model, images, list(TEXTS))
        checks.append(_compare(name, model, ours, features, log))
    return checks


@dataclasses.dataclass(frozen=True)
class _Features:
    """Embeddings of length 1, and pixels as the model sees them (normalised)."""

    by: str
    images: Float[np.ndarray, "n embed"]
    texts: Float[np.ndarray, "m embed"]
    pixels: Float[np.ndarray, "n h w 3"]


def _check_files(folder: pathlib.Path, model: LoadedModel, name: str) -> None:
    read = read_foreign(folder, name)
    wanted = config_lib.plain(model.config)
    found = config_lib.plain(read.config)
    keys = ("tower", "embed_dim", "quick_gelu", "vision", "text")
    if any(found["model"][key] != wanted["model"][key] for key in keys):
        raise ExportMismatch(f"{name}: read back as another architecture: {found['model']}")
    if Preprocess.from_config(read.config.data) != Preprocess.from_config(model.config.data):
        raise ExportMismatch(f"{name}: read back with another preprocessing")
    ours = dict(model.params)
    if not read.config.model.logit_bias:
        ours.pop("logit_bias", None)
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, array), other in zip(paths, jax.tree.leaves(read.params), strict=True):
        if not np.array_equal(np.asarray(array, np.float32), other, equal_nan=True):
            raise ExportMismatch(f"{name}: read back with other numbers in {jax.tree_util.keystr(path)}")


def _compare(name: str, model: LoadedModel, ours: _Features, theirs: _Features, log: Any) -> Check:
    std = np.array(model.config.data.std, np.float32)
    pixels = float(np.abs((ours.pixels - theirs.pixels) * std).max())
    images, texts = (float(np.abs(a - b).max()) for a, b in ((ours.images, theirs.images), (ours.texts, theirs.texts)))
    features = float(np.max([images, texts]))  # max() would lose a NaN
    # Written so that a NaN fails.
    if not features < FEATURES:
        raise ExportMismatch(
            f"{name}: features differ by {images:.2e} (images) and {texts:.2e} (texts), allowed: {FEATURES:g}"
        )
    if not pixels < PIXELS:
        raise ExportMismatch(f"{name}: pixels differ by {pixels:.2e}, allowed: {PIXELS:.2e}")
    log(f"{theirs.by} loads it: features differ by {features:.1e} at most, pixels by {pixels:.1e}")
    return Check(theirs.by, features, pixels)


def _is_about_importing(error: RuntimeError) -> bool:
    return "Failed to import" in str(error) or "operator torchvision" in str(error)


def _images(size: int) -> list[Image.Image]:
    """Smooth and rough images that have to be resized and cropped both ways.

    Their margins are even numbers of pixels: half of an odd one is rounded by open_clip, as torchvision does, and cut
    off by transformers, which moves the crop by a pixel.
    """
    draw = np.random.default_rng(0)
    images = []
    for short, long in ((size + 41, size + 90), (size // 2 + 3, 2 * size), (size, size + 8)):
        while (int(size * long / short) - size) % 2:
            long += 1
        for width, height in ((short, long), (long, short)):
            rough = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
            smooth = Image.fromarray(draw.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
            images += [rough, smooth]
    return images


def _by_us(model: LoadedModel, images: list[Image.Image], texts: list[str]) -> _Features:
    config = ml_collections.ConfigDict(model.config.model)
    config.update(compute_dtype="float32", attention="xla", remat="none")
    preprocess = Preprocess.from_config(model.config.data)
    graphdef = make_model(config, preprocess.image_size).graphdef
    tokens = Tokenizer(config.text.context_length)(texts)

    @jax.jit
    def encode(params, images, tokens):
        module = nnx.merge(graphdef, params)
        pixels = preprocess.normalise(images)
        return module.encode_image(pixels), module.encode_text(tokens), pixels

    with jax.default_matmul_precision("highest"):  # an accelerator would round
        results = encode(model.params, preprocess.batch(images), tokens)
    return _Features("ours", *(np.asarray(result) for result in results))


def _by_open_clip(folder: pathlib.Path, images: list[Image.Image], texts: list[str]) -> _Features:
    import open_clip
    import torch

    place = f"local-dir:{folder.absolute()}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    tokenizer = open_clip.get_tokenizer(place)
    model.eval()
    with torch.inference_mode():
        pixels = torch.stack([preprocess(image) for image in images])
        vectors = model.encode_image(pixels, normalize=True)
        words = model.encode_text(tokenizer(texts), normalize=True)
    pixels = pixels.permute(0, 2, 3, 1)
    return _Features(f"open_clip {open_clip.__version__}", vectors.numpy(), words.numpy(), pixels.numpy())


def _by_transformers(folder: pathlib.Path, images: list[Image.Image], texts: list[str]) -> _Features:
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    # PIL's resampling, which open_clip and we use too.
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    pixels = inputs["pixel_values"].permute(0, 2, 3, 1)
    vectors, words = outputs.image_embeds, outputs.text_embeds
    return _Features(f"transformers {transformers.__version__}", vectors.numpy(), words.numpy(), pixels.numpy())
