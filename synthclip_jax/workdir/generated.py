"""What generation leaves behind for training, evaluation, pages and cards: the names of its files, and their readers.

    W/gen/STAGE/plan.json               what a stage makes
    W/gen/STAGE/commits/00000.json      one record per shard that is done
    W/gen/concepts/bank.jsonl           the concepts, one a line; bank.json: their digest and counts
    W/gen/captions/captions-*.parquet   captions that were accepted; rejects-*.parquet: some that were not
    W/gen/balance/matches-*.parquet     which concepts are in each caption; counts_before.npy, counts_after.npy
    W/gen/balance/selected.parquet      the captions that are drawn; balance.json: how they were chosen
    W/dataset/NAME/VERSION/             provenance.json: how the dataset was made; README.md: its card
    W/measured.json                     coverage and density of the images beside real ones, by an audit

`gen` writes them, and reads them here as well. Where the folder of a stage is, `versions` knows; what lies beside the
shards of a dataset, `data.readers`.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from synthclip_jax.errors import UserError
from synthclip_jax.files import array_files, state_files, text_files
from synthclip_jax.files.locations import Location, parquet_source
from synthclip_jax.files.state_files import StateError

PLAN, COMMITS = "plan.json", "commits"
BANK, BANK_RECORD = "bank.jsonl", "bank.json"
CAPTIONS, REJECTS, MATCHES = "captions", "rejects", "matches"  # kinds of tables
COUNTS_BEFORE, COUNTS_AFTER = "counts_before.npy", "counts_after.npy"
SELECTED, BALANCE = "selected.parquet", "balance.json"
PROVENANCE, CARD = "provenance.json", "README.md"
MEASURED = "measured.json"
# Rows of the card: whose work it is. The second one keeps the name that it has in all cards.
CAPTIONS_BY, IMAGES_BY = "captions by", "pictures by"

DATA_PREFIX = "data:"  # a file that a commit record names so lies in the dataset's folder instead of the stage's
REMEDY = "Restore it, or let `python -m gen.verify --repair` make it again"
# What every commit record says; a stage adds more.
_COMMIT = {"shard": int, "plan": str, "count": int, "rejects": dict, "files": dict, "seconds": float, "finished": str}
_PROVENANCE = {
    "name": str,
    "version": str,
    "created": str,
    "seed": int,
    "config": dict,
    "plans": dict,
    "records": int,
    "shards": list,
}
_SINCE_2 = {"format": int, "generation": {"number": int, "recorded": bool, "stages": dict}, "files": dict}
_STAGE = {"folder": str, "plan": str, "records": list, "files": dict}
_SHA256 = re.compile(r"[0-9a-f]{64}")
# All that these records held when they had no checksum yet.
_OLDER_BANK = frozenset(("digest", "count", "sources", "unmatchable", "files", "versions", BANK))
_OLDER_BALANCE = frozenset(
    (
        *("t", "pool", "unique", "unmatched", "kept", "matches", "rejects", "keep_curve", "parameters", "fold_case"),
        *("bank_digest", "counts_before", "counts_after", "files"),
    )
)
_OLDER_PROVENANCE = frozenset((*_PROVENANCE, "rejects", "worker_seconds", "versions", "agreement"))


def table_name(kind: str, index: int, of: int) -> str:
    """The file of a shard in a stage that writes tables."""
    return f"{kind}-{index:05d}-of-{of:05d}.parquet"


def list_tables(folder: Location, kind: str) -> list[Location]:
    """The tables of a kind that a stage has written, in order."""
    return sorted(folder.glob(f"{kind}-*.parquet"))


# ---- The bank --------------------------------------------------------------------------------------------------------


def read_bank_record(
    path: Location, error: type[UserError] = StateError, more: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The record of a finished bank, `bank.json`.

    Args:
      more: what has to be in it beside the digests.

    Raises:
      StateError (or `error`): it is damaged.
    """
    remedy = f"Delete {path.parent} and run the concepts stage again: the same settings give the same bank"
    shape = {"digest": str, BANK: {"sha256": str}, **more}
    return state_files.read(path, remedy, shape, error=error, older=_OLDER_BANK.issuperset)


def read_bank(path: Location, error: type[UserError] = StateError) -> Iterator[dict[str, Any]]:
    """The concepts of a bank, `bank.jsonl`, in the order of their ids: `text`, and `source`, `category`, `frequency`.

    Raises:
      StateError (or `error`): a line is damaged.
    """
    for number, line in enumerate(text_files.read_lines(path), 1):
        name = f"{path}: line {number}"
        yield state_files.parse(line.encode(), name, REMEDY, {"text": str}, error=error)


# ---- Balanced captions -----------------------------------------------------------------------------------------------


def read_balance(path: Location, error: type[UserError] = StateError) -> dict[str, Any]:
    """The record of a finished selection, `balance.json`.

    Raises:
      StateError (or `error`): it is damaged.
    """
    numbers = {"pool": int, "unique": int, "unmatched": int, "kept": int, "t": int | float}
    remedy = "Delete it and run the same command again: the selection is made again from the matches that are there"
    shape = {"parameters": dict, "files": dict, **numbers}
    result = state_files.read(path, remedy, shape, error=error, older=_OLDER_BALANCE.issuperset)
    for name, meta in result["files"].items():
        if problem := state_files.mismatch(meta, {"bytes": int, "sha256": str}, f"files.{name}"):
            raise error(f"{path}: damaged ({problem}). {remedy}")
        if not re.fullmatch(r"[\w.-]+", name):
            raise error(f"{path}: damaged ({name[:40]!r} is no file of it). {remedy}")
    return result


def read_counts(path: Location) -> Int[np.ndarray, " concepts"]:
    """In how many captions each concept is.

    Raises:
      StateError: it is damaged.
    """
    try:
        return array_files.parse(path.read_bytes(), path.name, "iu", 1)
    except ValueError as problem:
        raise StateError(f"{path}: damaged ({problem}). {REMEDY}") from None


def selected_captions(path: Location) -> list[str]:
    """The captions that are drawn, of `selected.parquet`."""
    import pyarrow.parquet as pq

    return pq.read_table(parquet_source(path), columns=["caption"]).column("caption").to_pylist()


# ---- Shards ----------------------------------------------------------------------------------------------------------


def commit_path(folder: Location, shard: int) -> Location:
    """Where the commit record of a shard is, in the folder of its stage."""
    return folder / COMMITS / f"{shard:05d}.json"


def parse_commit(name: str, content: bytes | None) -> dict[str, Any] | None:
    """The commit record that a file of this name holds; None if it is damaged or not in its place."""
    try:
        record = state_files.parse(content or b"", name, "", _COMMIT, sealed=False)
    except StateError:
        return None
    if record.get(state_files.CHECK) != plan_digest(record) or f"{record['shard']:05d}.json" != name:
        return None
    counts = [record["count"], *record["rejects"].values()]
    if any(not isinstance(count, int) or count < 0 for count in counts) or record["seconds"] < 0:
        return None
    for file, meta in record["files"].items():
        if state_files.mismatch(meta, {"bytes": int, "sha256": str}) or not _SHA256.fullmatch(meta["sha256"]):
            return None
        if meta["bytes"] < 0 or not is_safe(file.removeprefix(DATA_PREFIX)):
            return None
    return record


def read_commit(path: Location) -> dict[str, Any]:
    """The commit record of a shard.

    Raises:
      StateError: it is damaged or not in its place.
    """
    record = parse_commit(path.name, text_files.read_bytes(path, state_files.LIMIT))
    if record is None:
        raise StateError(f"{path}: damaged. {REMEDY}")
    return record


def plan_digest(plan: Mapping[str, Any]) -> str:
    """What commit records call a plan by. Their own `check` is made in the same way."""
    return hashlib.sha256(state_files.to_json(state_files.unsealed(plan))).hexdigest()[:16]


def is_safe(name: str) -> bool:
    """Whether a file of this name lies in its folder: a relative path of plain components."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not set(name) & {"\\", "\0", ":"}


# ---- The dataset -----------------------------------------------------------------------------------------------------


def read_provenance(path: Location, error: type[UserError] = StateError) -> dict[str, Any]:
    """How a dataset was made, `provenance.json`, without its `check`.

    Raises:
      StateError (or `error`): it is damaged.
    """
    provenance = state_files.read(path, REMEDY, _PROVENANCE, error=error, older=_OLDER_PROVENANCE.issuperset)
    problem = state_files.mismatch(provenance, _SINCE_2) if "format" in provenance else ""
    for name, stage in {} if problem else stages_of(provenance).items():
        problem = problem or state_files.mismatch(stage, _STAGE, f"generation.stages.{name}")
    if problem:
        raise error(f"{path}: damaged ({problem}). {REMEDY}")
    return state_files.unsealed(provenance)


def stages_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What provenance holds of each stage; nothing if an older version of this program has written it."""
    generation = provenance.get("generation")
    stages = generation.get("stages") if isinstance(generation, dict) else None
    return stages if isinstance(stages, dict) else {}


def read_measured(path: Location) -> dict[str, Any]:
    """What an audit has measured of the images beside real ones: `metrics`, and what they were made from.

    Raises:
      StateError: it is damaged.
    """
    remedy = "Delete it and measure again: python -m gen.audit --reference=FOLDER"
    record = state_files.read(path, remedy, {"metrics": dict, "made_from": dict}, sealed=True)
    if problem := state_files.mismatch(record["metrics"], dict.fromkeys(record["metrics"], float), "metrics"):
        raise StateError(f"{path}: damaged ({problem}). {remedy}")
    return record


def read_credits(path: Location) -> list[tuple[str, str]]:
    """(what, whose) of a dataset's card: who wrote the captions and who drew the images."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text_files.read_lines(path)]
    return [(row[0], row[1].replace("`", "")) for row in rows if len(row) == 2 and row[0] in (CAPTIONS_BY, IMAGES_BY)]
