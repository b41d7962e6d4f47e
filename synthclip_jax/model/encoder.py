"""A checkpoint as a function: texts and images to unit vectors, at the speed of the device.

    encoder = load_encoder("runs/quickstart")
    vectors = encoder.texts(["a red car", "two dogs in the snow"])
    for batch in encoder.images((path, path.read_bytes()) for path in paths):
        ...  # batch.keys, batch.embeddings, batch.skipped

Both stream: memory does not grow with the number of images. Images are read by the caller's thread, decoded by
threads two batches ahead, and one batch is on its way to the device while the one before it is computed.
"""

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from synthclip_jax.config.schema import Config
from synthclip_jax.devices.cores import thread_count
from synthclip_jax.errors import EvaluationError
from synthclip_jax.images.decoding import ImageError, open_image
from synthclip_jax.images.headers import MAX_PIXELS
from synthclip_jax.left_out import printable
from synthclip_jax.model.preprocess import Preprocess
from synthclip_jax.text.tokenizer import Tokenizer, encode

TEXT_STEP = 16  # tokens: rows of text are cut to the multiple of this that holds a batch's longest one
WINDOW = 32  # batches of text that are tokenised at once, and sorted by their length

Alter = Callable[[Any, Image.Image], Image.Image]  # of an image by its key


@dataclasses.dataclass(frozen=True)
class Embedded:
    """One batch of images.

    Attributes:
      keys: of the images that decode, in the order given.
      embeddings: their unit vectors, float32.
      skipped: keys of those that do not decode.
      causes: why, for each of them.
    """

    keys: list
    embeddings: Float[np.ndarray, "n embed"]
    skipped: list
    causes: list[str]


class Encoder:
    """A model with its parameters, its way of preparing images, and its tokenizer.

    Args:
      config: `data` says how images are prepared, `model` what the model is; the one saved with the parameters.
      graphdef: the model; see `synthclip_jax.model.towers.make_model`.
      params: its parameters. Batches are spread over the mesh that they lie on.
      batch_size: images or texts encoded at once, over all devices; rounded up to what the devices divide.
      tower: images give the image tower's output before the projection, of any length, instead of unit vectors.

    Attributes:
      cut: the texts so far whose ends were not read.
    """

    def __init__(self, config: Config, graphdef: nnx.GraphDef, params: Any, batch_size: int = 256, tower: bool = False):
        self.config, self.params = config, params
        self.embed_dim: int = config.model.embed_dim
        self.preprocess = Preprocess.from_config(config.data)
        self.max_pixels: int = getattr(config.data, "max_pixels", MAX_PIXELS)  # an older config has none
        self.tokenizer = Tokenizer(config.model.text.context_length)
        self.placement = Placement.of(params)
        self.batch_size = self.placement.round_up(batch_size)
        self._programs = _compiled(graphdef, self.preprocess, self.placement, tower)
        self.cut: list[str] = []

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n embed"]:
        """Unit vectors of texts, in their order. What does not fit into the context length is cut off, and noted in
        `cut`.

        Raises:
          EvaluationError: the embeddings are not finite.
        """
        embeddings = np.zeros((len(texts), self.embed_dim), np.float32)
        size = self._size_for(len(texts))
        waiting: collections.deque = collections.deque()

        def collect() -> None:
            rows, result = waiting.popleft()
            embeddings[rows] = np.asarray(result)[: len(rows)]

        for start in range(0, len(texts), WINDOW * size):
            tokens = self.tokenizer(texts[start : start + WINDOW * size])
            lengths = tokens.argmax(axis=1) + 1  # the end token has the largest id
            full = np.flatnonzero(lengths == tokens.shape[1])
            self._note_cut([texts[start + row] for row in full.tolist()])
            order = np.argsort(lengths, kind="stable")
            for rows in np.split(order, range(size, len(order), size)):
                # The tower is causal and reads the end token: what comes after it changes nothing but the time.
                context = min(-(-int(lengths[rows].max()) // TEXT_STEP) * TEXT_STEP, tokens.shape[1])
                batch = np.zeros((size, context), np.int32)
                batch[: len(rows)] = tokens[rows, :context]
                waiting.append((start + rows, self._programs.texts(self.params, self.placement.put(batch))))
                if len(waiting) > 2:
                    collect()
        while waiting:
            collect()
        _check_finite(embeddings, "text")
        return embeddings

    def _note_cut(self, texts: Sequence[str]) -> None:
        """Notes those of the texts that fill the context which have more tokens than it holds."""
        room = self.tokenizer.context_length - 2
        self.cut += [text for text, ids in zip(texts, encode(texts), strict=True) if len(ids) > room] if texts else []

    def account_of_cut(self, name: str, what: str, total: int) -> Iterator[str]:
        """A line on the texts whose ends were not read, if there are any; they are forgotten then.

        Args:
          name: of the test set.
          what: the texts are called, in the plural.
          total: how many there are.
        """
        if self.cut:
            yield (
                f"{name}: {len(self.cut):,} of {total:,} {what} have more than the"
                f" {self.tokenizer.context_length - 2} tokens that the model reads; their ends are cut off, as of"
                f" {printable(self.cut[0][:80])!r}"
            )
            self.cut = []

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax: learned, and no logarithm any more."""
        return math.exp(float(self.params["logit_scale"]))

    def images(self, items: Iterable[tuple[Any, bytes]], alter: Alter | None = None) -> Iterator[Embedded]:
        """Unit vectors of encoded images, batch by batch, in their order.

        Args:
          items: (key, file content); a key can be anything. Where several processes share the mesh, all give the same.
          alter: what is done to an image before it is prepared, given its key.

        Raises:
          EvaluationError: the embeddings are not finite.
        """
        waiting: collections.deque = collections.deque()
        for keys, images, valid, causes in self._decoded(items, alter):
            result = self._programs.images(self.params, self.placement.put(images), self.placement.put(valid))
            waiting.append((keys, causes, result))
            if len(waiting) > 1:  # fetch one batch late: the device works while the next is decoded
                yield _embedded(*waiting.popleft())
        while waiting:
            yield _embedded(*waiting.popleft())

    def _decoded(
        self, items: Iterable[tuple[Any, bytes]], alter: Alter | None
    ) -> Iterator[tuple[list, UInt8[np.ndarray, "batch h w 3"], Bool[np.ndarray, " batch"], list[str]]]:
        """Decoded batches, all of one size (the last is padded). Each process decodes the rows its devices hold."""
        items, side = iter(items), self.preprocess.image_size
        batch = list(itertools.islice(items, self.batch_size))
        size = self._size_for(len(batch))
        rows = self.placement.local_rows((size, side, side, 3))

        def submit(batch: list[tuple[Any, bytes]]) -> list[tuple[Any, Future | None]]:
            return [
                (key, pool.submit(self._decode, data, key, alter) if row in rows else None)
                for row, (key, data) in enumerate(batch)
            ]

        def gather(batch: list[tuple[Any, Future | None]]):
            images, valid = np.zeros((size, side, side, 3), np.uint8), np.zeros(size, bool)
            causes = ["image that does not decode"] * len(batch)  # also of those that another process decodes
            for row, (_, future) in enumerate(batch):
                if future is None:
                    continue
                image = future.result()
                if isinstance(image, str):
                    causes[row] = image
                else:
                    images[row], valid[row] = image, True
            return [key for key, _ in batch], images, valid, causes

        with ThreadPoolExecutor(thread_count(self.config.data.threads)) as pool:
            ahead: collections.deque = collections.deque()
            try:
                while batch:
                    ahead.append(submit(batch))
                    if len(ahead) > 2:
                        yield gather(ahead.popleft())
                    batch = list(itertools.islice(items, size))
                while ahead:
                    yield gather(ahead.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(self, data: bytes, key: Any, alter: Alter | None) -> UInt8[np.ndarray, "size size 3"] | str:
        """The pixels, or why there are none."""
        try:
            # RGB first: that is how webdataset hands images to CLIP_benchmark.
            image = open_image(data, self.max_pixels).convert("RGB")
            return self.preprocess(alter(key, image) if alter else image)
        except ImageError as error:
            return error.cause

    def _size_for(self, count: int) -> int:
        """Rows of a batch: fewer than usual, a power of two, where there are but a few items in all."""
        return min(self.batch_size, self.placement.round_up(1 << max(count - 1, 0).bit_length()))


def load_encoder(location: str | pathlib.Path, step: int | None = None, batch_size: int = 256) -> Encoder:
    """Loads a checkpoint onto all devices of this process.

    Args:
      location: a workdir, or one checkpoint's folder (named by its step).
      step: which checkpoint of a workdir; None takes the newest.
      batch_size: images or texts encoded at once.

    Raises:
      CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    from synthclip_jax.model.loading import load_model

    model = load_model(location, step)
    return Encoder(model.config, model.graphdef, on_all_devices(model.params), batch_size)


def on_all_devices(params: Any) -> Any:
    """The parameters on every device of this process, so that batches are split over them."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    return jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


class _Programs(NamedTuple):
    """Compiled once for each shape, also when a training evaluates its model again."""

    texts: Callable[[Any, Int[Array, "b t"]], Float[Array, "b embed"]]
    images: Callable[[Any, UInt8[Array, "b h w 3"], Bool[Array, " b"]], tuple[Array, Array]]


@functools.lru_cache(maxsize=4)
def _compiled(graphdef: nnx.GraphDef, preprocess: Preprocess, placement: "Placement", tower: bool) -> _Programs:
    def texts(params, tokens):
        return nnx.merge(graphdef, params).encode_text(tokens)

    def images(params, pixels, valid):
        model, pixels = nnx.merge(graphdef, params), preprocess.normalise(pixels)
        vectors = model.visual.features(pixels).astype(jnp.float32) if tower else model.encode_image(pixels)
        # The flags travel along so that every process learns what the others could decode.
        return vectors, valid

    return _Programs(placement.jit(texts), placement.jit(images))


def _embedded(keys: list, causes: list[str], result: tuple[Array, Array]) -> Embedded:
    embeddings, valid = (np.asarray(part)[: len(keys)] for part in result)
    good, bad = (list(itertools.compress(keys, mask)) for mask in (valid, ~valid))
    embeddings = embeddings[valid]
    _check_finite(embeddings, "image")
    return Embedded(good, embeddings, bad, list(itertools.compress(causes, ~valid)))


def _check_finite(embeddings: Float[np.ndarray, "n embed"], tower: str) -> None:
    if not np.isfinite(embeddings).all():
        raise EvaluationError(
            f"the {tower} tower gives values that are not finite; the checkpoint is damaged or diverged"
        )


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where batches go: spread over the mesh that the parameters lie on."""

    mesh: jax.sharding.Mesh

    @classmethod
    def of(cls, params: Any) -> "Placement":
        """The placement that goes with parameters, wherever the trainer or the checkpoint has put them."""
        leaf = jax.tree.leaves(params)[0]
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, jax.sharding.NamedSharding):
            return cls(leaf.sharding.mesh)
        devices = list(leaf.devices()) if isinstance(leaf, jax.Array) else jax.local_devices()
        auto = (jax.sharding.AxisType.Auto,)
        return cls(jax.make_mesh((1,), ("data",), axis_types=auto, devices=devices[:1]))

    @property
    def _axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in ("data", "fsdp") if axis in self.mesh.shape)

    @property
    def _batch(self) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(self._axes or None))

    def round_up(self, batch_size: int) -> int:
        """The next batch size that the devices divide."""
        ways = math.prod(self.mesh.shape[axis] for axis in self._axes)
        return -(-batch_size // ways) * ways

    def local_rows(self, shape: tuple[int, ...]) -> set[int]:
        """Which rows of a batch the devices of this process hold."""
        slices = self._batch.addressable_devices_indices_map(shape).values()
        return {row for index in slices for row in range(*index[0].indices(shape[0]))}

    def put(self, batch: np.ndarray) -> Array:
        """A batch on the devices. Every process has it, at least the rows that its devices hold."""
        return jax.make_array_from_callback(batch.shape, self._batch, lambda index: batch[index])

    def jit(self, function: Callable) -> Callable:
        """The function compiled so that every process can read its results."""
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

        def on_mesh(*arguments):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        return jax.jit(on_mesh, out_shardings=everywhere)
