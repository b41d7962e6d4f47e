"""A workdir as a finished run leaves it, made in a second from invented numbers. For tests of what reads workdirs."""

import importlib.metadata
import io
import json
import math
import pathlib
import tarfile
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from toy_bank import write_bank

from gen.checks.evidence import measured
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.config import default_config, digest, plain
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.records import INDEX_SUFFIX, ShardName, frame_shard
from synthclip_jax.evals import calibration, origin, results
from synthclip_jax.evals.datasets import open_dataset
from synthclip_jax.evals.zeroshot import Predictions, ZeroShot, metrics
from synthclip_jax.files import state_files
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.workdir import generated

CONCEPTS = ("cat", "dog", "violin", "lighthouse", "teapot", "bicycle", "owl", "cactus")
BANK_DIGEST = "5f0c2a9d1b7e4c33"
WEIGHTS = "0123456789abcdef"  # of the checkpoint that was evaluated, which is gone


def blob(caption: str, concept: str, seed: int, size: int = 32) -> np.ndarray:
    """An image that needs no drawing package: a coloured disc whose colour belongs to the concept."""
    colour = np.random.default_rng([*concept.encode()]).integers(40, 255, 3)
    y, x = np.mgrid[:size, :size]
    inside = (x - size * (0.4 + seed % 5 / 20)) ** 2 + (y - size / 2) ** 2 < (size / 3) ** 2
    return np.where(inside[..., None], colour, 235).astype(np.uint8)


def encode(image: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, quality=90)
    return buffer.getvalue()


def parquet(table: dict) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def make_generation(
    workdir: pathlib.Path,
    concepts: Sequence[str] = CONCEPTS,
    captions: Sequence[tuple[int, str]] | None = None,
    per_caption: int = 2,
    draw: Callable[..., np.ndarray] = blob,
    shard_size: int = 64,
) -> None:
    """Everything that generation leaves behind."""
    rng = np.random.default_rng(0)
    gen, name = workdir / "gen", "toy"
    if captions is None:
        places = ("on a table", "in the snow", "at night by the sea", "in a small green garden", "beside an old house")
        captions = [(c, f"A {concepts[c]} {places[k % 5]}.") for c in range(len(concepts)) for k in range(6)]
    write_bank(workdir, concepts, "sprites", BANK_DIGEST)
    texts = [caption for _, caption in captions]
    ids = [f"{c:06d}-{index:04d}" for index, (c, _) in enumerate(captions)]
    concept_names = [concepts[c] for c, _ in captions]
    rejected = {"no concept": 5, "too long": 11, "refusal": 1}
    refused = {
        "id": ["x"] * 3,
        "concept": ["cat", "dog", "owl"],
        "attempt": [2, 2, 2],
        "reason": list(rejected),
        "text": ["An empty room.", "A dog that " + "runs and " * 60, "I cannot help with that."],
    }
    tables = {
        generated.CAPTIONS: {"id": ids, "concept": concept_names, "caption": texts},
        generated.REJECTS: refused,
    }
    answers = {"accepted": len(texts), **{reason: 3 * count for reason, count in rejected.items()}}
    store = StageStore(gen / "captions")
    source = {"engine": "transformers", "model": "tiny"}
    store.ensure_plan({"stage": "captions", "seed": 0, "shards": 1, "source": source})
    files = {generated.table_name(kind, 0, 1): parquet(table) for kind, table in tables.items()}
    store.commit(0, ShardOutput(files, len(texts), rejected, {"answers": answers}), 210.0)

    before = np.bincount([c for c, _ in captions], minlength=len(concepts)) * rng.integers(1, 9, len(concepts))
    counts = {generated.COUNTS_BEFORE: before, generated.COUNTS_AFTER: np.minimum(before, 20)}
    for file, array in counts.items():
        write_atomic(gen / "balance" / file, npy(array.astype(np.int64)))
    ts = [1, 2, 5, 10, 20, 50, 100]
    kept = [round(len(texts) * (1 - math.exp(-t / 12))) for t in ts]
    state_files.write(
        gen / "balance" / generated.BALANCE,
        {
            "sealed": True,
            "t": 20.0,
            "pool": len(texts) + 3,
            "unique": len(texts),
            "unmatched": 2,
            "kept": len(texts) - 2,
            "keep_curve": [
                {"t": t, "kept": k, "expected": float(k), "tail_share": min(1.0, t / 60)}
                for t, k in zip(ts, kept, strict=True)
            ],
            "parameters": {"t": 20.0},
            "bank_digest": BANK_DIGEST,
            "files": {file: measured(gen / "balance" / file) for file in counts},
        },
    )

    folder = workdir / "dataset" / name / "1.0.0"
    images = [(index, copy) for index in range(len(texts)) for copy in range(per_caption)]
    rng.shuffle(images)
    shards = [images[start : start + shard_size] for start in range(0, len(images), shard_size)]
    store = StageStore(gen / "images", folder)
    plan = {
        "stage": "images",
        "dataset": name,
        "version": "1.0.0",
        "pictures": len(images) + sum(number % 3 for number in range(len(shards))),
        "shards": len(shards),
        "seed": 0,
        "source": {"engine": "sprites"},
    }
    store.ensure_plan(plan)
    described = []
    for number, shard in enumerate(shards):
        examples = [
            serialize_example(
                {
                    "id": [f"{ids[index]}-{copy:02d}".encode()],
                    "image": [encode(draw(texts[index], concept_names[index], 7 * index + copy), "JPEG")],
                    "caption": [texts[index].encode()],
                    "concept": [concept_names[index].encode()],
                    "concept_id": [captions[index][0]],
                    "seed": [1],
                }
            )
            for index, copy in shard
        ]
        data, index_file = frame_shard(examples)
        file = str(ShardName(name, "train", number, len(shards)))
        files = {f"data:{file}": data, f"data:{file}{INDEX_SUFFIX}": index_file}
        store.commit(number, ShardOutput(files, len(shard), {"not drawable": number % 3}), 6.5)
        described.append({"file": file, "records": len(shard), **measured(folder / file)})
    state_files.write(
        folder / generated.PROVENANCE,
        {
            "name": name,
            "version": "1.0.0",
            "created": "2026-01-02T03:04:05+00:00",
            "seed": 0,
            "records": len(images),
            "versions": {"python": "3.11.9", "pillow": "12.0"},
            "config": {"images": {"engine": "sprites"}},
            "plans": {"images": plan},
            "shards": described,
        },
    )
    artist = "`blob`, a disc painter (CC0)"
    (folder / generated.CARD).write_text(f"# toy\n\n| | |\n|---|---|\n| {generated.IMAGES_BY} | {artist} |\n")


def make_training(workdir: pathlib.Path, steps: int = 600, every: int = 5) -> None:
    """Config and metrics of a training run."""
    config = default_config()
    config.name = "toy"
    config.train.batch_size = 128
    config.model.vision.update(width=128, layers=4)
    config.data.image_size = 64
    run = {
        "config": plain(config),
        "dataset": {"examples": 96, "digest": "77aa"},
        "versions": {"jax": importlib.metadata.version("jax")},
    }
    state_files.write(workdir / "train" / "config.json", {**run, "digest": digest(config)})
    rng = np.random.default_rng(0)
    with (workdir / "train" / "metrics.jsonl").open("w") as file:
        for step in range(every, steps + 1, every):
            done = step / steps
            line = {
                "step": step,
                "epoch": 16 * done,
                "loss": 1.3 + 3.5 * math.exp(-4 * done) + rng.normal(0, 0.06),
                "logit_scale": 14.3 + 20 * done**1.5,
                "learning_rate": 1e-3 * min(done * 16, 0.5 + 0.5 * math.cos(math.pi * done)),
                "examples_per_second": 1900 + rng.normal(0, 90),
                "data_wait": 0.02,
                "seconds": 240 * done,
            }
            file.write(json.dumps(line) + "\n")


def make_test_set(
    workdir: pathlib.Path,
    name: str,
    concepts: Sequence[str] = CONCEPTS,
    per_class: int = 5,
    skill: float = 1.5,
    draw: Callable[..., np.ndarray] = blob,
    step: int = 600,
    weights: str | None = None,
) -> None:
    """A webdataset folder and the result of evaluating a model on it."""
    folder = workdir / "testsets" / name
    (folder / "test").mkdir(parents=True)
    labels = np.repeat(np.arange(len(concepts)), per_class)
    keys = [f"{index:06d}" for index in range(len(labels))]
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for key, label in zip(keys, labels.tolist(), strict=True):
            image = encode(draw(f"A {concepts[label]}.", concepts[label], int(key)), "PNG")
            for suffix, data in (("cls", str(label).encode()), ("png", image)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"{concept}\n" for concept in concepts))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\na photo of a {c}.\n")
    (folder / "README.md").write_text(f"# {name}\n\nDiscs by a disc painter.\n")
    dataset = open_dataset(f"wds:testsets/{name}", workdir)
    rng = np.random.default_rng(len(name))
    known = rng.gamma(1.2, skill, len(concepts))  # some classes are easy, some are not
    scores = rng.normal(size=(len(labels), len(concepts))) + known[labels, None] * np.eye(len(concepts))[labels]
    top = np.argsort(-scores, axis=1)[:, :5].astype(np.int32)
    best = np.take_along_axis(scores, top, 1).astype(np.float32)
    about = (name, dataset.class_names, tuple(keys), labels.astype(np.int32), top, best)
    predictions = Predictions(*about, confidence=calibration.confidence(scores, 1.0))
    values = {f"zeroshot/{name}/{key}": value for key, value in metrics(predictions).items()}
    made_from = origin.origin(WEIGHTS if weights is None else weights, dataset, workdir)
    described = {name: ZeroShot.describe(default_config(), dataset) | {origin.MADE_FROM: made_from}}
    results.write_result(workdir, step, "zeroshot", values, described, {name: predictions.arrays()})


def evaluated(workdir: pathlib.Path, weights: str, step: int = 600) -> None:
    """Notes that it was these weights that were evaluated."""
    path = results.result_path(workdir, step, "zeroshot")
    result = results.read_result(path)
    for described in result["datasets"].values():
        described[origin.MADE_FROM]["checkpoint"] = weights
    state_files.write(path, result)


def set_detail(workdir: pathlib.Path, name: str, arrays: dict[str, np.ndarray], step: int = 600) -> None:
    """Has a model say something else to each image of a test set."""
    result = results.read_result(results.result_path(workdir, step, "zeroshot"))
    described = {name: result["datasets"][name]}
    results.write_result(workdir, step, "zeroshot", result["metrics"], described, {name: arrays})


def make_run(workdir: pathlib.Path, **generation) -> pathlib.Path:
    """All of it."""
    make_generation(workdir, **generation)
    make_training(workdir)
    concepts = generation.get("concepts", CONCEPTS)
    draw = generation.get("draw", blob)
    make_test_set(workdir, "composites", concepts, skill=2.0, draw=draw)
    make_test_set(workdir, "outlines", concepts, skill=0.3, draw=draw)
    return workdir
