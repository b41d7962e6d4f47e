"""Checks a finished dataset's own files: provenance, TFDS's metadata, the card, and that no other shard is there."""

from collections.abc import Iterator, Mapping
from typing import Any

from gen.checks.evidence import METADATA, measured, read_provenance
from gen.checks.shards import Fault
from gen.shards.finished_images import SPLIT
from gen.shards.plans import read_json
from synthclip_jax.data.records import INDEX_SUFFIX, ShardName
from synthclip_jax.files.locations import Location, location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX
from synthclip_jax.workdir.versions import DATASET_NAME


def datasets_of(workdir: Location, version: str) -> list[str]:
    """The names of the datasets that have a folder of this version."""
    folder = location(workdir) / "dataset"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [name for name in names if DATASET_NAME.fullmatch(name) and (folder / name / version).is_dir()]


def provenance_of(data: Location | None) -> tuple[dict[str, Any] | None, list[Fault]]:
    """What a dataset's provenance says.

    Returns:
      None where the dataset is not finalized; nothing in it where it was and cannot be read. And what is wrong.
    """
    if data is None:
        return None, []
    path = data / generated.PROVENANCE
    if path.exists():
        try:
            return read_provenance(path), []
        except StoreError as error:
            return {}, [Fault("finalize", None, str(error))]
    there = [name for name in METADATA if (data / name).exists()]
    if not there:
        return None, []
    return {}, [
        Fault("finalize", None, f"{path}: missing, though {there[0]} is there. Finalize did not end, or it was deleted")
    ]


def dataset_faults(
    data: Location, provenance: Mapping[str, Any] | None, records: Mapping[int, Mapping[str, Any]], shards: int = 0
) -> Iterator[Fault]:
    """What is wrong with the files of a dataset beside its shards.

    Args:
      records: commit records of the shards that are whole.
      shards: how many are planned.
    """
    expected = []
    for record in records.values():
        for name, meta in record["files"].items():
            if name.startswith(DATA_PREFIX) and not name.endswith(INDEX_SUFFIX):
                expected.append((name.removeprefix(DATA_PREFIX), record["count"], meta["bytes"], meta["sha256"]))
    for text in _texts(data, provenance, sorted(expected), records, shards):
        yield Fault("finalize", None, text)


def _texts(
    data: Location,
    provenance: Mapping[str, Any] | None,
    expected: list[tuple[str, int, int, str]],
    records: Mapping[int, Mapping[str, Any]],
    shards: int,
) -> Iterator[str]:
    planned = {name for name, *_ in expected}
    if provenance:
        path = data / generated.PROVENANCE
        try:
            named = [
                (shard["file"], shard["records"], shard["bytes"], shard["sha256"]) for shard in provenance["shards"]
            ]
            if sorted(named) != expected:
                missing = sorted({name for name, *_ in named} ^ planned)
                differs = [one[0] for one in named if one not in expected and one[0] not in missing]
                yield f"{path}: does not agree with the commit records about {', '.join([*missing, *differs][:5])}"
            if provenance["records"] != sum(count for _, count, _, _ in named):
                yield f"{path}: says {provenance['records']:,} records, its shards add up to another number"
            planned |= {name for name, *_ in named}
        except (KeyError, TypeError) as error:
            yield f"{path}: damaged ({error!r})"
    if provenance is not None:
        # An older version of this program has kept no digests of these.
        for name, meta in provenance.get("files", dict.fromkeys(METADATA)).items():
            file = data / name
            if not file.exists():
                yield f"{file}: missing" + (": TFDS's metadata" if name != generated.CARD else "")
            elif meta is not None and measured(file) != meta:
                yield f"{file}: not the bytes that provenance.json names (sha256)"
        yield from _metadata(data, records)
    if data.is_dir():
        name = data.parent.name
        planned |= {str(ShardName(name, SPLIT, index, shards)) for index in range(shards)}
        for found in sorted(data.glob("*.tfrecord-?????-of-?????")):
            if found.name not in planned:
                yield f"{found}: a shard that is not planned"


def _metadata(data: Location, records: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    info, features = data / "dataset_info.json", data / "features.json"
    try:
        if info.exists():
            lengths = [int(length) for length in read_json(info)["splits"][0]["shardLengths"]]
            if lengths != [records[index]["count"] for index in sorted(records)]:
                yield f"{info}: its shard lengths are not those of the shards"
        if features.exists():
            read_json(features)
    except (StoreError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        yield f"{data}: TFDS's metadata are damaged ({error})"
