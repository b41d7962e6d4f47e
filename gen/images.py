"""Images: every selected caption is drawn `per_caption` times and written to TFRecord shards.

The plan is a function of the selected captions and the config: images are ordered by a hash of their id and cut into
shards of `shard_size`, so any part of the dataset is a fair sample of it. An image's bytes depend on its id and the
plan alone, not on threads, batches or restarts.
"""

import collections
import concurrent.futures
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from gen.engines.image_batches import ImageBatches, encode_jpeg
from gen.engines.interface import ImageEngine, Pixels, Rejected, Request
from gen.engines.isolation import check_shard
from gen.engines.registry import image_engine
from gen.engines.registry import make_image_engine as make_engine
from gen.filters.images import UNDECODABLE, reject_reason
from gen.shards import draws
from gen.shards.finished_images import SPLIT
from gen.shards.image_order import forget_order, image_order, read_order, write_order
from gen.shards.local import Executor, Worker, run_local
from gen.shards.store import ShardOutput, StageStore
from gen.shards.tables import parquet
from synthclip_jax.config.schema import Config
from synthclip_jax.data.records import INDEX_SUFFIX, ShardName, frame_shard
from synthclip_jax.files.locations import Location, parquet_source
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX
from synthclip_jax.workdir.versions import find_version


def dataset_features(size: int):
    """The dataset's features, as `tfds.features.FeaturesDict`, for images of `size` pixels."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(doc="concept, caption and image number"),
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg"),
            "caption": tfds.features.Text(doc="what the image was made from"),
            "concept": tfds.features.Text(doc="the concept the caption was asked for"),
            "concept_id": tfds.features.Scalar(np.int32, doc="its number in the concept bank"),
            "concepts": tfds.features.Sequence(np.int32, doc="numbers of all concepts the caption names"),
            "seed": tfds.features.Scalar(np.int64, doc="seed of the image"),
            "attempt": tfds.features.Scalar(np.int32, doc="attempts rejected before this image"),
        }
    )


def image_seed(seed: int, identity: str, attempt: int) -> int:
    """The seed of one attempt at one image."""
    # The purpose keeps its first name: with another one every seed would be another.
    return draws.bits63(seed, identity, f"picture {attempt}")


class ImageWorker(Worker):
    """Makes the images of one shard after another; may be called from `overlap` threads at once.

    Args:
      engine: what draws.
      selected: table of the balanced captions.
      config: the run's configuration.
      order: of the images; None: it is worked out here.
    """

    reports_items = True
    overlap = 2  # shards at once: the engine draws the next one while the last one is encoded and committed

    def __init__(
        self, engine: ImageEngine, selected, config: Config, order: Int64[np.ndarray, " images"] | None = None
    ):
        from tensorflow_datasets.core import example_serializer

        self.engine, self.selected, self.config, self.images = engine, selected, config, config.gen.images
        if order is None:
            order = image_order(selected.column("id").to_pylist(), self.images.per_caption, config.seed)
        self.order = order
        self.features = dataset_features(self.images.size)
        self.serializer = example_serializer.ExampleSerializer(self.features.get_serialized_info())
        self.pool = concurrent.futures.ThreadPoolExecutor(self.images.threads, "jpeg")
        self.batches = ImageBatches(engine, self.images.batch_size)

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Makes one shard.

        Raises:
          EngineFailure: the engine raised on every image.
        """
        start = shard["index"] * self.images.shard_size
        captions, numbers = np.divmod(self.order[start : start + shard["items"]], self.images.per_caption)
        rows = self.selected.take(captions).to_pylist()
        for row, number in zip(rows, numbers.tolist(), strict=True):
            row["id"] = f"{row['id']}-{number:02d}"
        encoded, attempts, rejects, details = self._make(rows)
        check_shard(shard["index"], len(rows), [(reason, details.get(slot, "")) for slot, reason in rejects.items()])
        examples = []
        for slot, row in enumerate(rows):
            if slot in encoded:
                examples.append(self._serialize(row, encoded[slot], attempts[slot]))
        data, index = frame_shard(examples)
        name = f"{DATA_PREFIX}{ShardName(self.config.name, SPLIT, shard['index'], shard['of'])}"
        rejects_name = generated.table_name(generated.REJECTS, shard["index"], shard["of"])
        return ShardOutput(
            files={name: data, f"{name}{INDEX_SUFFIX}": index, rejects_name: _rejects_table(rows, attempts, rejects)},
            count=len(examples),
            rejects=dict(collections.Counter(rejects.values())),
        )

    def _make(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[int, bytes], dict[int, int], dict[int, str], dict[int, str]]:
        """Generates, retries and encodes; encoding runs in threads while the engine makes the next batches.

        Returns:
          JPEG bytes, last attempt, reject reason, and what the engine said that raised, each by slot in `rows`.
        """
        encoding: dict[int, concurrent.futures.Future] = {}
        attempts: dict[int, int] = {}
        rejects: dict[int, str] = {}
        details: dict[int, str] = {}

        def request(slot: int, attempt: int) -> Request:
            row = rows[slot]
            return Request(row["caption"], row["concept"], image_seed(self.config.seed, row["id"], attempt))

        with self.batches.shard() as inbox:
            for slot in range(len(rows)):
                inbox.ask(request(slot, 0), (slot, 0))
            finished = 0
            while finished < len(rows):
                (slot, attempt), outcome = inbox.take()
                outcome = self._checked(outcome)
                attempts[slot] = attempt
                if not isinstance(outcome, Rejected):
                    encoding[slot] = self.pool.submit(encode_jpeg, outcome, self.images.size, self.images.jpeg_quality)
                elif outcome.retry and attempt + 1 < self.images.max_attempts:
                    inbox.ask(request(slot, attempt + 1), (slot, attempt + 1))
                    continue
                else:
                    rejects[slot], details[slot] = outcome.reason, outcome.detail
                finished += 1
                if self.progress:
                    self.progress.update(1, {rejects[slot]: 1} if slot in rejects else {})
        encoded = {}
        for slot, future in encoding.items():
            data = future.result()
            if data is None:
                rejects[slot] = UNDECODABLE
                if self.progress:
                    self.progress.update(0, {UNDECODABLE: 1})
            else:
                encoded[slot] = data
        return encoded, attempts, rejects, details

    def _checked(self, outcome: Pixels | Rejected) -> Pixels | Rejected:
        if isinstance(outcome, Rejected):
            return outcome
        reason = reject_reason(outcome, self.images)
        return Rejected(reason, retry=True) if reason else outcome

    def _serialize(self, row: Mapping[str, Any], jpeg: bytes, attempt: int) -> bytes:
        example = {
            "id": row["id"],
            "image": jpeg,
            "caption": row["caption"],
            "concept": row["concept"],
            "concept_id": row["concept_id"],
            "concepts": row["matches"],
            "seed": image_seed(self.config.seed, row["id"], attempt),
            "attempt": attempt,
        }
        # The serialiser's own `serialize_example` leaves the order of features to chance: it differs between processes.
        message = self.serializer.get_tf_example(self.features.encode_example(example))
        return message.SerializeToString(deterministic=True)

    def close(self) -> None:
        """Stops the threads; a shard that is being made is given up."""
        self.batches.close()
        self.pool.shutdown(cancel_futures=True)


def _rejects_table(rows: Sequence[Mapping[str, Any]], attempts: Mapping[int, int], rejects: Mapping[int, str]) -> bytes:
    import pyarrow as pa

    slots = sorted(rejects)
    table = pa.table(
        {
            "id": pa.array([rows[slot]["id"] for slot in slots], pa.string()),
            "concept_id": pa.array([rows[slot]["concept_id"] for slot in slots], pa.int32()),
            "concept": pa.array([rows[slot]["concept"] for slot in slots], pa.string()),
            "caption": pa.array([rows[slot]["caption"] for slot in slots], pa.string()),
            "attempt": pa.array([attempts[slot] for slot in slots], pa.int32()),
            "reason": pa.array([rejects[slot] for slot in slots], pa.string()),
        }
    )
    return parquet(table)


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Runs the stage: makes every shard that is not there yet.

    Returns:
      A summary: images made, shards, rejects by reason.

    Raises:
      StoreError: balancing has not run, kept nothing, or the workdir was made with another configuration.
    """
    import pyarrow.parquet as pq

    images, version = config.gen.images, find_version(workdir, config.gen.version)
    path = version.stage_folder("balance") / generated.SELECTED
    if not path.exists():
        raise StoreError(f"{path}: no balanced captions yet. Run the stages before: --stages=concepts,captions,balance")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    engine = image_engine(images)
    if note := engine.note(images):
        print(f"images: {note}", file=sys.stderr, flush=True)
    try:
        total = pq.read_metadata(parquet_source(path)).num_rows * images.per_caption
    except (ValueError, OSError) as error:  # Arrow's errors are of these
        raise StoreError(f"{path}: damaged ({error}). `python -m gen.verify --repair` makes it again") from error
    if not total:
        raise StoreError(f"{path}: balancing kept no caption, so there is nothing to draw. Raise config.gen.balance.t")
    of = -(-total // images.shard_size)
    store = StageStore(version.stage_folder("images"), version.dataset_folder(config.name))
    store.ensure_plan(
        {
            "stage": "images",
            "dataset": config.name,
            "version": version.dataset,
            "seed": config.seed,
            "selected": digest,
            "pictures": total,
            "shards": of,
            **{
                key: images[key]
                for key in (
                    "per_caption",
                    "shard_size",
                    "size",
                    "jpeg_quality",
                    "max_attempts",
                    "min_std",
                    "max_saturated",
                )
            },
            "source": engine.identity(images),
        }
    )
    shards = [
        {"index": index, "of": of, "items": min(images.shard_size, total - index * images.shard_size)}
        for index in range(of)
    ]
    folder, plan = store.folder, store.plan_digest
    if len(store.committed()) < of:  # workers may be many, and on other machines: they read the order that is left here
        write_order(folder, plan, path, images.per_caption, config.seed)
    records = executor(
        store,
        shards,
        lambda: ImageWorker(make_engine(images), pq.read_table(parquet_source(path)), config, read_order(folder, plan)),
        label="images",
        unit="images",
        gpus=engine.gpus(images),
    )
    if len(records) == of:
        forget_order(folder)
    rejects = sum((collections.Counter(record["rejects"]) for record in records.values()), collections.Counter())
    return {
        "images": sum(record["count"] for record in records.values()),
        "shards": of,
        **{f"rejected {reason}": count for reason, count in rejects.most_common()},
    }
