"""Starts another version of what a workdir generates, beside those that are there (`synthclip_jax.workdir.versions`).

Where one stage is asked for with other settings than it was made with, it and the stages after it get folders of their
own, and the dataset the next version. The stages before it are used as they are.
"""

import datetime
import os

from gen.stages import FOLDERS, VERSIONED
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError, create_if_absent
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import FILTERED, Version, choose_version, list_versions


def open_version(workdir: str | os.PathLike | Location, wanted: str, new: bool) -> tuple[Version, str]:
    """The version that a run continues, and which name (if any) it asks for that is still to be started.

    Writes the record of the first version, so that it can be told from later ones.

    Args:
      wanted: `config.gen.version`; empty: the newest.
      new: another version may be started; then `wanted` may be its name.

    Raises:
      VersionError: there is no such version and none may be started, or a record is damaged.
    """
    versions = list_versions(workdir)
    pending = ""
    known = [version.dataset for version in versions]
    if new and wanted and wanted not in known and versions[0].record_path.exists():
        version, pending = versions[-1], wanted
    else:
        version = choose_version(versions, wanted)
    if version.number == 1:
        write_record(version, "")
    return version, pending


def start_version(
    workdir: str | os.PathLike | Location, base: Version, changed: str, name: str = "", why=""
) -> Version:
    """Starts the version that differs from `base` in the stage `changed`.

    Args:
      name: of its dataset; empty: the next minor version.
      why: what differs, for readers of the record.

    Raises:
      StoreError: another driver has started another version at the same moment.
    """
    newest = list_versions(workdir)[-1]
    version = base.next(VERSIONED, changed, newest, name)
    if not write_record(version, why):
        raise StoreError(
            f"{version.record_path}: another driver has just started this version. Run the same"
            " command without --new-version to work on it, or again to start one more"
        )
    return version


def write_record(version: Version, why: str) -> bool:
    """Writes the record of a version unless there is one; says whether this call has written it."""
    record = {
        "number": version.number,
        "dataset": version.dataset,
        "stages": dict(version.stages),
        "why": why,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    path = version.record_path
    return not path.exists() and create_if_absent(path, to_json(state_files.seal(record)))


def written_folders(version: Version, *names: str) -> list[str]:
    """The folders of a workdir that are written for a version, relative to the workdir.

    Args:
      names: of its dataset.
    """
    folders = ["gen/versions", "gen/set_aside", "testsets"]
    for stage in FOLDERS:
        folders += [f"gen/{version.folder_name(stage)}/{inner}" for inner in (generated.COMMITS, "failures")]
    return folders + [f"dataset/{name}{suffix}/{version.dataset}" for name in names for suffix in ("", FILTERED)]
