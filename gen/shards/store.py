"""Plans and commit records: what makes generation resumable to the shard.

A stage owns a folder with `plan.json` (written once, create-if-absent) and `commits/00000.json`, one small record per
finished shard. A shard is done if and only if its record exists and agrees with the plan and with the files it names.
The files are written first and the record last, each of them whole or absent. So killing the process at any moment
loses at most the shards in flight, and nothing is ever half there.

Any number of drivers may work on one workdir. The second one to finish a shard finds a valid record and gives up
its own files: on a disk a lock around files and record sees to that. In an object store the record is created if
absent; it names the files by the store's own tag of their bytes, so that a record beside files of another driver does
not count.
"""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import random
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from gen.shards.plans import Compared, PlanMismatch, comparing, differences, read_json, there_and_expected
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location, is_url, location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import (
    Stamp,
    StoreError,
    create_if_absent,
    explained,
    list_files,
    locked,
    read_files,
    remove_leftovers,
    stamp,
    write_atomic,
)
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX, commit_path, is_safe, parse_commit, plan_digest

_ATTEMPTS = 8  # at one shard that another driver commits at the same moment, in an object store
_RECORD_NAME = re.compile(r"(\d{5,9})\.json")


@dataclasses.dataclass(frozen=True)
class ShardOutput:
    """What a worker made of one shard: file contents by name, how many items, what was rejected and why."""

    files: dict[str, bytes]
    count: int
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)


def sha256(data: bytes) -> str:
    """Hex digest of the bytes."""
    return hashlib.sha256(data).hexdigest()


class StageStore:
    """The folder of one stage: its plan, its files and its commit records.

    Args:
      folder: where plan, records and the stage's own files live: a path or a URL.
      data_folder: where files named `data:NAME` go (the dataset); defaults to `folder`.
    """

    def __init__(self, folder: str | os.PathLike | Location, data_folder: str | os.PathLike | Location | None = None):
        self.folder = location(folder)
        self.data_folder = location(data_folder) if data_folder else self.folder
        self.plan_digest = ""

    @property
    def plan_path(self) -> Location:
        """The plan's file."""
        return self.folder / generated.PLAN

    def ensure_plan(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the plan if there is none, and refuses one that differs from the plan already there.

        Raises:
          PlanMismatch: names each key that differs, with both values.
          StoreError: the plan there is damaged, is gone though shards of another one are committed, or the storage
            cannot be used.
        """
        # Tuples become lists, as they will be when read back.
        plan = state_files.unsealed(json.loads(to_json(dict(plan))))
        compare_only = comparing() == str(self.folder)
        with explained(self.plan_path):
            planned = self.plan_path.exists()
        if not planned and compare_only:
            raise Compared(plan)
        if not planned:
            self._refuse_orphans(plan)
            create_if_absent(self.plan_path, to_json(state_files.seal(plan)))
        try:
            existing = self.read_plan(expected=plan)
        except StoreError:
            if compare_only:
                raise Compared(plan) from None
            raise
        lines = differences(existing, plan)
        if lines:
            shown = "\n  ".join(lines[:20])
            raise PlanMismatch(
                f"{self.plan_path}: this workdir was made with another configuration (there -> now):\n  {shown}\n"
                "Use the configuration it was made with, start another version beside it with --new-version, or use"
                " another --workdir",
                lines,
            )
        if compare_only:
            raise Compared(plan)
        self.plan_digest = plan_digest(existing)
        for folder in {self.folder, self.folder / generated.COMMITS, self.data_folder}:
            remove_leftovers(folder)
        return existing

    def read_plan(self, expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The plan that is there, without its `check`.

        Args:
          expected: what it should be; if it is damaged, the error names what differs.

        Raises:
          StoreError: it is missing or damaged. That is no other configuration: no version is started for it.
        """
        try:
            return state_files.unsealed(read_json(self.plan_path))
        except StoreError as error:
            there = self.read_damaged_plan()
            if expected is None or there is None or not (lines := differences(there, expected)):
                raise
            raise StoreError(
                f"{self.plan_path}: damaged: {there_and_expected(lines[0])}. Restore it, or delete"
                " it: it is then written again"
            ) from error

    def read_damaged_plan(self) -> dict[str, Any] | None:
        """The plan, even if its `check` says that it is not as it was written; None if it cannot be read at all."""
        with contextlib.suppress(OSError, state_files.StateError):
            return state_files.unsealed(state_files.read(self.plan_path, "", sealed=False))
        return None

    def plans_of_records(self) -> dict[str, list[int]]:
        """The digests of the plans that whole commit records name, each with the shards of which they are."""
        commits = self.folder / generated.COMMITS
        names = sorted(name for name in list_files(commits) if _RECORD_NAME.fullmatch(name))
        plans: dict[str, list[int]] = {}
        for name, content in zip(names, read_files([commits / name for name in names]), strict=True):
            if record := parse_commit(name, content):
                plans.setdefault(record["plan"], []).append(record["shard"])
        return plans

    def _refuse_orphans(self, plan: Mapping[str, Any]) -> None:
        """Without a plan, shards of another one would be taken for not made, and written over."""
        others = {digest: shards for digest, shards in self.plans_of_records().items() if digest != plan_digest(plan)}
        if others:
            raise StoreError(
                f"{self.plan_path}: missing, though {sum(map(len, others.values())):,} shards are committed that were"
                " made with another configuration than this. Restore it, give the configuration they were made with, or"
                f" use another --workdir; if they are of no use, delete {self.folder}"
            )

    def path(self, name: str) -> Location:
        """Where a file of a shard's output lies."""
        place = name.removeprefix(DATA_PREFIX)
        if not is_safe(place):
            raise StoreError(f"{self.folder}: a file is called {name!r}, which does not lie in its folder: refused")
        return (self.data_folder if name.startswith(DATA_PREFIX) else self.folder) / place

    def commit(self, shard: int, output: ShardOutput, seconds: float = 0.0) -> dict[str, Any]:
        """Writes a shard's files, then its record, unless another driver has committed the shard meanwhile.

        Returns:
          The record that counts.

        Raises:
          StoreError: the storage is full, read-only or gone, or another driver's files come in between each time.
        """
        with explained(self.plan_path):
            planned = self.plan_path.exists()
        if not planned:  # else the shard would go to the empty folder that a file system was mounted on
            raise StoreError(
                f"{self.plan_path}: the plan is gone, and with it what was committed: the file system is no longer"
                " mounted, or the folder was deleted. Mount it again and run the same command again"
            )
        record_path = commit_path(self.folder, shard)
        with locked(record_path):
            for attempt in range(_ATTEMPTS):
                if there := self.record(shard):
                    return there
                time.sleep(random.random() * attempt)  # two drivers that undo each other's work drift apart
                files = {name: self._write(name, data) for name, data in sorted(output.files.items())}
                record = {
                    "shard": shard,
                    "plan": self.plan_digest,
                    "count": output.count,
                    "rejects": dict(sorted(output.rejects.items())),
                    "files": files,
                    "seconds": round(seconds, 3),
                    "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "host": socket.gethostname(),
                    **output.info,
                }
                record["check"] = plan_digest(record)
                if not is_url(record_path):
                    write_atomic(record_path, to_json(record))
                    return record
                if not create_if_absent(record_path, to_json(record)) and not self.record(shard):
                    write_atomic(record_path, to_json(record))  # what is there does not count, or counts no longer
                # No lock: only now it shows whose files the record stands beside. The next round looks.
        raise StoreError(f"{record_path}: another driver keeps rewriting this shard. Stop all other drivers and rerun")

    def record(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard if it is done, else None.

        Raises:
          StoreError: the storage cannot be read.
        """
        path = commit_path(self.folder, shard)
        record = self._checked(path.name, read_files([path])[0])
        if record and all(_agrees(meta, stamp(self.path(name))) for name, meta in record["files"].items()):
            return record
        return None

    def committed(self) -> dict[int, dict[str, Any]]:
        """The records of shards that are done, by shard index.

        A record that is damaged, that belongs to another plan, or whose files are missing or not those that it names,
        counts as not done: the shard is made again.

        Raises:
          StoreError: the storage cannot be read.
        """
        commits = self.folder / generated.COMMITS
        names = sorted(name for name in list_files(commits) if _RECORD_NAME.fullmatch(name))
        if not names:
            return {}
        own = list_files(self.folder)
        data = own if self.data_folder == self.folder else list_files(self.data_folder)
        records = {}
        for name, content in zip(names, read_files([commits / name for name in names]), strict=True):
            record = self._checked(name, content)
            if record and all(
                _agrees(meta, data.get(file.removeprefix(DATA_PREFIX)) if DATA_PREFIX in file else own.get(file))
                for file, meta in record["files"].items()
            ):
                records[record["shard"]] = record
        return dict(sorted(records.items()))

    def _checked(self, name: str, content: bytes | None) -> dict[str, Any] | None:
        """The record that a file holds, if it is whole, of this plan and in its place."""
        record = parse_commit(name, content)
        return record if record and record["plan"] == self.plan_digest else None

    def restore(self, record: Mapping[str, Any]) -> None:
        """Writes a commit record again that is lost or damaged, and whose files are there (`has_files`)."""
        files = {}
        for name, meta in record["files"].items():
            files[name] = {"bytes": meta["bytes"], "sha256": meta["sha256"]}
            if is_url(path := self.path(name)):
                files[name]["etag"] = _etag(path, path.read_bytes())
        whole = {"host": "", **record, "files": files, "plan": self.plan_digest}
        whole["check"] = plan_digest(whole)
        write_atomic(commit_path(self.folder, record["shard"]), to_json(whole))

    def has_files(self, record: Mapping[str, Any]) -> bool:
        """Whether the files are there that a commit record names, to the last byte."""
        for name, meta in record["files"].items():
            path = self.path(name)
            with explained(path):
                if not path.exists():
                    return False
                data = path.read_bytes()
            if len(data) != meta["bytes"] or sha256(data) != meta["sha256"]:
                return False
        return True

    def _write(self, name: str, data: bytes) -> dict[str, Any]:
        """Writes a file of a shard.

        Returns:
          What the record says of it.
        """
        path = self.path(name)
        write_atomic(path, data)
        meta: dict[str, Any] = {"bytes": len(data), "sha256": sha256(data)}
        if is_url(path):
            meta["etag"] = _etag(path, data)
        return meta


def _agrees(meta: Mapping[str, Any], there: Stamp | None) -> bool:
    return there is not None and there.bytes == meta["bytes"] and there.etag == meta.get("etag", "")


def _etag(path: Location, data: bytes) -> str:
    """The tag of these bytes in an object store; of none that are there, if another driver has put others meanwhile."""
    there = stamp(path)
    if there is None or there.bytes != len(data):
        return "replaced"
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    if there.etag in ("", md5.hex(), base64.b64encode(md5).decode()):
        return there.etag
    # Encrypted or uploaded in parts: the tag is no digest of the bytes, so they are looked at themselves.
    with explained(path):
        same = path.read_bytes() == data and stamp(path) == there
    return there.etag if same else "replaced"
