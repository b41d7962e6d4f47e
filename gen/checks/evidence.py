"""What a dataset's provenance.json holds of all that it was made from, so that anything missing is noticed.

    "format": 2
    "generation": {"number": 1, "stages": {"captions": {"folder": "captions", "plan": DIGEST, "records": [...],
                                                        "files": {"bank.json": {"bytes": ..., "sha256": ...}}}, ...}}
    "files": {"README.md": {"bytes": ..., "sha256": ...}, ...}   beside provenance.json
    "check": a digest of all else

Of each stage: its folder, its plan's digest, all its commit records (which name every file by size and sha256), and the
files that it writes beside its shards. What is published names no folder and no host of the machines it was made on.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gen.shards.store import StageStore
from gen.stages import BY_NAME
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError, explained
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import plan_digest
from synthclip_jax.workdir.versions import Version

FORMAT = 2
METADATA = ("features.json", "dataset_info.json", generated.CARD)
# Keys of configurations and plans that hold paths of the machine on which the data were made.
_PLACES = ("wordnet_path", "metaclip_path", "lists", "block_list", "model", "checkpoint")
_PRIVATE = ("check", "host", "plan")  # of a commit record: made anew when it is restored, or nobody's business


def read_provenance(path: Location) -> dict[str, Any]:
    """The provenance of a dataset, without its `check`.

    Raises:
      StoreError: it is missing or damaged.
    """
    with explained(path):
        return generated.read_provenance(path, StoreError)


def of_stage(version: Version, stage: str, data: Location) -> dict[str, Any] | None:
    """What provenance is to hold of a stage; None if the stage was never begun or is not at its end.

    Args:
      data: the folder of the dataset.
    """
    folder = version.stage_folder(stage)
    store = StageStore(folder, data)
    if not store.plan_path.exists():
        return None
    plan = store.read_plan()
    store.plan_digest = plan_digest(plan)
    records = store.committed()
    if len(records) < plan.get("shards", 0):
        return None
    return {
        "folder": folder.name,
        "plan": store.plan_digest,
        "records": [published_record(record) for record in records.values()],
        "files": {name: measured(folder / name) for name in BY_NAME[stage].files if (folder / name).exists()},
    }


def generation(version: Version, stages: Sequence[str], data: Location) -> dict[str, Any]:
    """What provenance is to hold of the stages, and which version's they are."""
    found = {stage: of_stage(version, stage, data) for stage in stages}
    return {
        "number": version.number,
        "recorded": version.record_path.exists(),
        "stages": {stage: what for stage, what in found.items() if what is not None},
    }


def measured(path: Location) -> dict[str, Any]:
    """Size and digest of a file."""
    with explained(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def published_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A commit record without what only its own machines and stores know."""
    files = {name: {key: meta[key] for key in ("bytes", "sha256")} for name, meta in record["files"].items()}
    return {key: value for key, value in record.items() if key not in _PRIVATE} | {"files": files}


def published(value: Any, key: str = "") -> Any:
    """A configuration or a plan with the names of files and folders in place of where they lie."""
    if isinstance(value, Mapping):
        return {name: published(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [published(inner, key) for inner in value]
    return _name(value) if key in _PLACES and isinstance(value, str) else value


def _name(place: str) -> str:
    """The last part of a path that is absolute, of a home folder, or leads upwards; else the text itself."""
    path = pathlib.PurePath(place)
    private = path.is_absolute() or place.startswith("~") or ".." in path.parts or place.startswith("file:")
    return (path.name or "folder") if private or pathlib.PureWindowsPath(place).drive else place
