"""The finished images of a workdir, for stages that look at all of them and write beside their shards."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gen.shards.store import StageStore
from synthclip_jax.config.schema import Config
from synthclip_jax.data.records import INDEX_SUFFIX
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir.generated import DATA_PREFIX
from synthclip_jax.workdir.versions import Version, find_version

SPLIT = "train"  # that all images are in


class FinishedImages(NamedTuple):
    """All shards of a version's images.

    Attributes:
      version: whose they are.
      data: the folder of the dataset.
      shards: for an executor, with the `file` and its `sha256` beside the usual.
      digest: changes when any image does.
    """

    version: Version
    data: Location
    shards: list[dict[str, Any]]
    digest: str


def finished_images(config: Config, workdir: Location) -> FinishedImages:
    """The images that the images stage has made.

    Raises:
      StoreError: they are not planned yet, or some are missing.
    """
    version = find_version(workdir, config.gen.version)
    data = version.dataset_folder(config.name)
    plan, made = image_records(version, data)
    shards = [
        {"index": index, "of": plan["shards"], "items": record["count"], **data_file(record)}
        for index, record in made.items()
    ]
    return FinishedImages(version, data, shards, images_digest(made.values()))


def image_records(version: Version, data: Location) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The plan of a version's images, and the commit records of all its shards.

    Args:
      data: the folder of the dataset.

    Raises:
      StoreError: they are not planned yet, or some are missing.
    """
    store = StageStore(version.stage_folder("images"), data)
    if not store.plan_path.exists():
        raise StoreError(f"{store.plan_path}: no images are planned yet. Run the stages before: --stages=images")
    plan = store.ensure_plan(store.read_plan())
    records = store.committed()
    missing = sorted(set(range(plan["shards"])) - set(records))
    if missing:
        raise StoreError(
            f"{data}: {len(missing)} of {plan['shards']} shards are not there yet (the first is {missing[0]})."
            " Run --stages=images: it makes only what is missing"
        )
    return plan, records


def images_digest(records: Iterable[Mapping[str, Any]]) -> str:
    """What changes when any image of the shards with these commit records does."""
    return hashlib.sha256("".join(data_file(record)["sha256"] for record in records).encode()).hexdigest()[:16]


def data_file(record: Mapping[str, Any]) -> dict[str, Any]:
    """The shard of images that a commit record names: file, bytes, sha256."""
    for name, meta in record["files"].items():
        if name.startswith(DATA_PREFIX) and not name.endswith(INDEX_SUFFIX):
            return {"file": name.removeprefix(DATA_PREFIX), "bytes": meta["bytes"], "sha256": meta["sha256"]}
    raise StoreError(f"the commit record of shard {record['shard']} names no data file: delete it and run images again")
