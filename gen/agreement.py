"""Agreement: how well each image and its caption belong together, by a CLIP checkpoint.

Optional: it runs where `gen.agreement.checkpoint` names one, trained here or imported. Beside each shard of images
lies then SHARD.agreement.npy: the cosine of image and caption, float32, in the order of the records (NaN: the image
does not decode). The scores serve as a threshold when training (`data.min_agreement`), or for a dataset without the
pairs that score lower (`gen.agreement.min_score`, see `gen.filtered`).

Pairs that a model finds fitting are alike, so a threshold costs variety. With `gen.agreement.reference`, a folder of
real images, the stage says how much: density and coverage (`synthclip_jax.evals.coverage`) of all images and of those
that `min_score` keeps.

Cosines of one model mean nothing beside those of another. So each commit record also says how often an image agrees
no better with its own caption than with that of the next record: half of them, if captions and images have nothing
to do with each other.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gen.shards.finished_images import finished_images
from gen.shards.local import Executor, Worker, run_local
from gen.shards.plans import PlanMismatch, read_json
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.config.generation import Agreement
from synthclip_jax.config.schema import Config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.readers.agreement import SUFFIX, load_scores
from synthclip_jax.data.records import RecordError, unframe_shard
from synthclip_jax.evals.coverage import K, Reference, ReferenceImages
from synthclip_jax.files import array_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX
from synthclip_jax.workdir.versions import Version

# Beside the plan, for each shard: in how many balls each image lies, and the best score in each ball.
_INSIDE, _BEST = "inside-{:05d}.npy", "best-{:05d}.npy"
BINS = 50  # of the histogram of cosines in each commit record, from -1 to 1


class AgreementWorker(Worker):
    """Scores the pairs of one shard after another.

    Args:
      encoder: a checkpoint as a function; see `synthclip_jax.model.encoder`.
      folder: of the dataset.
      reference: real images to compare with.
    """

    def __init__(self, encoder: Any, folder: Location, reference: Reference | None = None):
        self._encoder, self._folder, self._reference = encoder, folder, reference

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Scores one shard.

        Raises:
          RecordError: a record is damaged; `python -m gen.verify --repair` makes the shard again.
        """
        path = self._folder / shard["file"]
        images, captions = [], []
        for payload in unframe_shard(path.read_bytes(), path):
            if isinstance(payload, RecordError):
                raise payload
            values = parse_example(payload)
            images.append(values["image"][0])
            captions.append(values["caption"][0].decode(errors="replace"))
        scores = np.full(len(images), np.nan, np.float32)
        unique = list(dict.fromkeys(captions))  # a caption may have several images
        numbers = {caption: number for number, caption in enumerate(unique)}
        texts = self._encoder.texts(unique)
        own = np.array([numbers[caption] for caption in captions], np.int64)
        other = np.roll(own, -1)
        compared = worse = 0
        inside = np.zeros(len(images), np.int64)
        best = np.full(len(self._reference or ()), -np.inf, np.float32)
        for batch in self._encoder.images(enumerate(images)):
            rows = np.array(batch.keys, np.int64)
            if not len(rows):
                continue
            scores[rows] = (batch.embeddings * texts[own[rows]]).sum(axis=1)
            different = own[rows] != other[rows]
            mismatched = (batch.embeddings * texts[other[rows]]).sum(axis=1)
            compared += int(different.sum())
            worse += int((different & (scores[rows] <= mismatched)).sum())
            if self._reference:
                hits = self._reference.hits(batch.embeddings, scores[rows])
                inside[rows], best = hits.inside, np.maximum(best, hits.best)
        files = {f"{DATA_PREFIX}{shard['file']}{SUFFIX}": _npy(scores)}
        if self._reference:
            files |= {_INSIDE.format(shard["index"]): _npy(inside), _BEST.format(shard["index"]): _npy(best)}
        histogram, _ = np.histogram(scores[np.isfinite(scores)], bins=BINS, range=(-1.0, 1.0))
        return ShardOutput(
            files=files,
            count=len(scores),
            info={
                "compared": compared,
                "no_better_than_another": worse,
                "undecodable": int(np.isnan(scores).sum()),
                "sum": float(np.nansum(scores.astype(np.float64))),
                "histogram": histogram.tolist(),
            },
        )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Runs the stage: scores every shard that has no scores yet; nothing where no checkpoint is named.

    Returns:
      A summary: pairs, mean score, the share that agrees no better with its own caption than with another, and with a
      reference density and coverage; empty where no checkpoint is named.

    Raises:
      StoreError: images are missing, or the scores there are another checkpoint's.
      CheckpointError: there is no such checkpoint.
      EvaluationError: there is no such folder of real images, or too few are in it.
    """
    settings = config.gen.agreement
    if not settings.checkpoint:
        return {}
    version, data, shards, digest = finished_images(config, workdir)
    store = StageStore(version.stage_folder("agreement"), data)
    step, checkpoint = _identity(settings)
    real = ReferenceImages(settings.reference) if settings.reference else None
    try:
        store.ensure_plan(
            {
                "stage": "agreement",
                "pictures": digest,
                "shards": len(shards),
                "step": step,
                "checkpoint": checkpoint,
                **({"reference": real.digest} if real else {}),
            }
        )
    except PlanMismatch as error:
        raise StoreError(
            f"{error}\nTo score these images anew, delete {store.folder}: images and captions stay as they are"
        ) from error

    def make_worker() -> AgreementWorker:
        from synthclip_jax.model.encoder import load_encoder

        encoder = load_encoder(settings.checkpoint, step, settings.batch_size)
        return AgreementWorker(encoder, data, real.embedded(encoder) if real else None)

    for line in real.left_out.lines() if real else ():
        print(f"{settings.reference}: {line}", flush=True)
    records = executor(store, shards, make_worker, label="agreement", unit="pairs", gpus=1).values()
    return summary(records) | (beside_real(store, records, settings.min_score) if real else {})


def open_scores(version: Version) -> tuple[StageStore, dict[str, Any]]:
    """The store of the scores of a version's dataset, and their plan.

    Raises:
      StoreError: there are none.
    """
    folder = version.stage_folder("agreement")
    if not (folder / generated.PLAN).exists():
        raise StoreError(
            f"{folder}: no agreement scores yet. Name a checkpoint that scores the pairs:"
            " --config.gen.agreement.checkpoint=WORKDIR --stages=agreement"
        )
    plan = read_json(version.stage_folder("images") / generated.PLAN, {"dataset": str})
    store = StageStore(folder, version.dataset_folder(plan["dataset"]))
    return store, store.ensure_plan(store.read_plan())


def summary(records: Any) -> dict[str, Any]:
    """What the commit records say together."""
    total = sum(record["count"] for record in records)
    scored = total - sum(record["undecodable"] for record in records)
    compared = sum(record["compared"] for record in records)
    return {
        "scored": scored,
        "mean": sum(record["sum"] for record in records) / max(scored, 1),
        "no better than another caption": sum(record["no_better_than_another"] for record in records)
        / max(compared, 1),
    }


def beside_real(store: StageStore, records: Iterable[Mapping[str, Any]], min_score: float = -1.0) -> dict[str, float]:
    """Density and coverage of all images that decode, and of those whose pairs `min_score` keeps.

    Raises:
      StoreError: a file of the stage is damaged.
    """
    inside, scores, best = [], [], np.zeros(0, np.float32)
    for record in records:
        index = record["shard"]
        data = next(name for name in record["files"] if name.endswith(SUFFIX)).removeprefix(DATA_PREFIX)
        found = load_scores(str(store.data_folder / data.removesuffix(SUFFIX)), record["count"])
        there = np.isfinite(found)
        scores.append(found[there])
        inside.append(_read(store, _INSIDE.format(index), "iu")[there])
        part = _read(store, _BEST.format(index), "f")
        best = np.maximum(best, part) if len(best) else part
    every, hits = np.concatenate(scores), np.concatenate(inside)
    shown = {"all": -np.inf} | ({f"those of at least {min_score:g}": min_score} if min_score > -1 else {})
    values = {}
    for name, lowest in shown.items():
        kept = every >= lowest
        values[f"density of {name}"] = float(hits[kept].sum() / max(kept.sum(), 1) / K)
        values[f"coverage of {name}"] = float((np.isfinite(best) & (best >= lowest)).mean())
    return values


def _read(store: StageStore, name: str, kinds: str) -> np.ndarray:
    path = store.path(name)
    try:
        return array_files.parse(path.read_bytes(), name, kinds, 1)
    except ValueError as error:
        raise StoreError(f"{path}: damaged ({error}). `python -m gen.verify --repair` makes it again") from error


def _identity(settings: Agreement) -> tuple[int, str]:
    """The step of the checkpoint and a digest that tells it from others, wherever it is moved to; loads no model."""
    from synthclip_jax.model.checkpoint_files import CheckpointError, find_checkpoint

    try:
        folder = find_checkpoint(settings.checkpoint, settings.step if settings.step >= 0 else None)
    except CheckpointError as error:
        raise CheckpointError(
            f"gen.agreement.checkpoint: given {settings.checkpoint!r}: no checkpoint is there ({error}). Name a workdir"
            " that was trained or imported, or one of its checkpoints"
        ) from None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        if path.stat().st_size < 1 << 20:
            digest.update(path.read_bytes())
    return int(folder.name), digest.hexdigest()[:16]
