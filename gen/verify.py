"""Reads everything again that generation has written, and names what is wrong with it.

    python -m gen.verify --workdir=runs/quickstart [--repair]

Of each planned shard: its commit record, sizes and sha256 of its files. Of captions and pictures also that made and
rejected ids are together exactly the planned ones, each once; of pictures every record's checksum, the index, that the
fields are those of the id's caption, and that the picture decodes. Then that balance, metadata and provenance agree
with it all. Exit status 1 if anything is wrong.

`--repair` makes again exactly what is wrong, and verifies once more. The configuration is the one that provenance.json
holds; where a workdir has none yet, give it with --config.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen.progress import Progress
from gen.repair import repair
from gen.shard_checks import Fault, ShardCheck, check_shard
from gen.store import StageStore, StoreError, read_json, sha256, stage_folder
from synthclip_jax.errors import command
from synthclip_jax.generated import find_version
from synthclip_jax.locations import Location, parquet_source, place
from synthclip_jax.records import dataset_folder

# Stages that commit shards, in the order in which they depend on each other. `concepts` and `finalize` commit none.
COMMITTING = ("captions", "balance", "images", "recaption", "agreement")
SHOWN = 200  # faults printed


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
      faults: everything that is wrong, stage by stage.
      shards, items, bytes: how much was read.
    """

    faults: list[Fault]
    shards: int
    items: int
    bytes: int


def verify(workdir: Location, version: str = "", processes: int = 0) -> Result:
    """Reads all of one version of a workdir.

    Args:
      version: of the dataset; empty: the newest.
      processes: that read and decode; 0: one for each core.

    Raises:
      StoreError: nothing has been generated in this workdir.
    """
    version = find_version(workdir, version).dataset
    stages = {stage: stage_folder(workdir, stage, version) for stage in ("concepts", *COMMITTING)}
    stages = {stage: folder for stage, folder in stages.items() if (folder / "plan.json").exists()}
    if not stages:
        raise StoreError(f"{workdir}: nothing has been generated here: python -m gen --config=... --workdir=...")
    faults: list[Fault] = []
    checks: list[ShardCheck] = []
    plans: dict[str, Mapping[str, Any]] = {}
    for stage, folder in stages.items():
        try:
            plans[stage] = _plan(folder)
        except StoreError as error:
            faults.append(Fault(stage, None, str(error)))
    if "concepts" in plans:
        faults += _named_files("concepts", stages["concepts"] / "bank.json", "bank.jsonl")
    if "balance" in plans:
        faults += _named_files("balance", stages["balance"] / "balance.json", "files")
    for stage in COMMITTING:
        if stage in plans:
            try:
                checks += _shards(workdir, stage, version, plans)
            except (StoreError, ValueError, KeyError, OSError) as error:
                faults.append(Fault(stage, None, f"{stages[stage]}: what is planned cannot be told: {error}"))
    results = list(_run(checks, processes))
    for found, _, _ in results:
        faults += found
    if "images" in plans:
        faults += _dataset_faults(workdir, version, stages["images"], plans["images"])
    order = ("concepts", *COMMITTING, "finalize")
    faults.sort(key=lambda fault: (order.index(fault.stage), -1 if fault.shard is None else fault.shard))
    return Result(faults, len(checks), sum(count for _, count, _ in results), sum(size for _, _, size in results))


def _plan(folder: Location) -> Mapping[str, Any]:
    plan = read_json(folder / "plan.json")
    if not isinstance(plan, dict):
        raise StoreError(f"{folder / 'plan.json'}: damaged: it is no plan. Restore it, or use another --workdir")
    return plan


def _run(checks: Sequence[ShardCheck], processes: int) -> Iterator[tuple[list[Fault], int, int]]:
    """Checks all shards, in processes of their own: most of the time goes into Python."""
    processes = min(processes or len(os.sched_getaffinity(0)), len(checks))
    progress = Progress(sum(check.items for check in checks), "items", "verify")
    if processes < 2:
        for check in checks:
            result = check_shard(check)
            progress.update(check.items, {"faults": len(result[0])} if result[0] else {})
            yield result
    else:
        context = multiprocessing.get_context("forkserver")
        with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
            # A few ahead of each process: a check carries the ids of its shard.
            waiting = iter(checks)
            ahead = {pool.submit(check_shard, check): check for check in _take(waiting, 3 * processes)}
            while ahead:
                done, _ = concurrent.futures.wait(ahead, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    check, result = ahead.pop(future), future.result()
                    ahead |= {pool.submit(check_shard, check): check for check in _take(waiting, 1)}
                    progress.update(check.items, {"faults": len(result[0])} if result[0] else {})
                    yield result
    if checks:
        progress.close()


def _take(checks: Iterator[ShardCheck], count: int) -> Iterator[ShardCheck]:
    for _ in range(count):
        check = next(checks, None)
        if check is None:
            return
        yield check


def _shards(
    workdir: Location, stage: str, version: str, plans: Mapping[str, Mapping[str, Any]]
) -> Iterator[ShardCheck]:
    """What is to be checked of each planned shard of a stage."""
    folder, plan = stage_folder(workdir, stage, version), plans[stage]
    data = dataset_folder(workdir, plans["images"]["dataset"], version) if "images" in plans else None
    if stage == "captions":
        yield from _caption_shards(folder, plan)
    elif stage == "images":
        yield from _image_shards(workdir, version, folder, data, plan)
    else:
        # One shard for each of the captions, or of the pictures.
        of = plan.get("shards", plans["captions" if stage == "balance" else "images"]["shards"])
        yield from (ShardCheck(stage, str(folder), str(data or folder), index, 1) for index in range(of))


def _caption_shards(folder: Location, plan: Mapping[str, Any]) -> Iterator[ShardCheck]:
    for index in range(plan["shards"]):
        start = index * plan["shard_size"]
        numbers = range(start, min(start + plan["shard_size"], plan["captions"]))
        ids = tuple("{:06d}-{:04d}".format(*divmod(number, plan["per_concept"])) for number in numbers)
        yield ShardCheck("captions", str(folder), str(folder), index, len(ids), ids)


def _image_shards(
    workdir: Location, version: str, folder: Location, data: Location, plan: Mapping[str, Any]
) -> Iterator[ShardCheck]:
    import numpy as np
    import pyarrow.parquet as pq

    from gen.images import picture_order, selected_path

    path = selected_path(workdir, version)
    with path.open("rb") as file:
        changed = _digest(file) != plan["selected"]
    if changed:
        raise StoreError(f"{path}: not the captions that the pictures were planned from")
    selected = pq.read_table(parquet_source(path), columns=["id", "caption"])
    if len(selected) * plan["per_caption"] != plan["pictures"]:
        raise StoreError(f"{path}: {len(selected)} captions, and {plan['pictures']} pictures are planned")
    order = picture_order(selected.column("id").to_pylist(), plan["per_caption"], plan["seed"])
    for index in range(plan["shards"]):
        start = index * plan["shard_size"]
        captions, pictures = np.divmod(order[start : start + plan["shard_size"]], plan["per_caption"])
        rows = selected.take(captions)
        ids = zip(rows.column("id").to_pylist(), pictures.tolist(), strict=True)
        yield ShardCheck(
            "images",
            str(folder),
            str(data),
            index,
            len(captions),
            tuple(f"{identity}-{picture:02d}" for identity, picture in ids),
            tuple(rows.column("caption").to_pylist()),
            plan["size"],
        )


def _digest(file: Any) -> str:
    import hashlib

    return hashlib.file_digest(file, "sha256").hexdigest()


def _named_files(stage: str, path: Location, key: str) -> list[Fault]:
    """Faults of files whose sizes and digests a JSON file names, under one key or by name."""
    if not path.exists():
        return [Fault(stage, None, f"{path}: missing: the stage has not finished")]
    try:
        meta = read_json(path)
        files = meta[key] if key == "files" else {key: meta[key]}
    except (StoreError, KeyError, TypeError) as error:
        return [Fault(stage, None, f"{path}: damaged ({error})")]
    faults = []
    for name, expected in files.items():
        file = path.parent / name
        if not file.exists():
            faults.append(Fault(stage, None, f"{file}: missing"))
        elif sha256(file.read_bytes()) != expected["sha256"]:
            faults.append(Fault(stage, None, f"{file}: not the bytes that {path.name} names"))
    return faults


def _dataset_faults(workdir: Location, version: str, folder: Location, plan: Mapping[str, Any]) -> list[Fault]:
    """Whether metadata and provenance are those of the shards, where the dataset is finalized."""
    data = dataset_folder(workdir, plan["dataset"], version)
    path = data / "provenance.json"
    if not path.exists():
        return []  # not at its end: no fault
    faults = []

    def fault(text: str) -> None:
        faults.append(Fault("finalize", None, text))

    store = StageStore(folder, data)
    store.ensure_plan(plan)
    made = store.committed()
    expected = []
    for record in made.values():
        for name, meta in record["files"].items():
            if name.startswith("data:") and not name.endswith(".index"):
                expected.append((name.removeprefix("data:"), record["count"], meta["bytes"], meta["sha256"]))
    try:
        provenance = read_json(path)
        named = [(shard["file"], shard["records"], shard["bytes"], shard["sha256"]) for shard in provenance["shards"]]
        if sorted(named) != sorted(expected):
            missing = sorted({name for name, *_ in named} ^ {name for name, *_ in expected})
            differs = [a[0] for a in named if a not in expected and a[0] not in missing]
            fault(f"{path}: does not agree with the commit records about {', '.join([*missing, *differs][:5])}")
        if provenance["records"] != sum(count for _, count, _, _ in named):
            fault(f"{path}: says {provenance['records']:,} records, its shards add up to another number")
    except (StoreError, KeyError, TypeError) as error:
        fault(f"{path}: damaged ({error!r})")
    info_path = data / "dataset_info.json"
    try:
        info = read_json(info_path)
        lengths = [int(length) for length in info["splits"][0]["shardLengths"]]
        if lengths != [made[index]["count"] for index in sorted(made)]:
            fault(f"{info_path}: its shard lengths are not those of the shards")
        read_json(data / "features.json")
    except (StoreError, KeyError, TypeError, ValueError, OSError, IndexError) as error:
        fault(f"{info_path.parent}: TFDS's metadata are missing or damaged ({error})")
    names = {name for name, *_ in expected}
    for found in data.glob("*.tfrecord-?????-of-?????"):
        if found.name not in names:
            fault(f"{found}: a shard that is not planned")
    return faults


@command("verify")
def main() -> None:
    """Verifies, repairs if asked, and verifies again; exits with status 1 if anything is wrong at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m gen.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=place, help="folder or URL of the run")
    parser.add_argument("--version", default="", help="of the dataset; the newest if not given")
    parser.add_argument("--repair", action="store_true", help="make again what is wrong")
    parser.add_argument("--config", help="for --repair: the run's config file, if it is not found in the workdir")
    parser.add_argument("--processes", type=int, default=0, help="that read and decode; 0: one for each core")
    arguments, rest = parser.parse_known_args()
    if unknown := [argument for argument in rest if not argument.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(unknown)}")
    overrides = [argument.removeprefix("--config.") for argument in rest]
    result = verify(arguments.workdir, arguments.version, arguments.processes)
    _print(result)
    if result.faults and arguments.repair:
        repair(arguments.workdir, arguments.version, result.faults, arguments.config, overrides)
        result = verify(arguments.workdir, arguments.version, arguments.processes)
        _print(result)
    sys.exit(1 if result.faults else 0)


def _print(result: Result) -> None:
    for fault in result.faults[:SHOWN]:
        print(f"fault  {fault}")
    if len(result.faults) > SHOWN:
        print(f"fault  ... and {len(result.faults) - SHOWN:,} more")
    size = f"{result.bytes / 1e6:,.1f} MB"
    print(
        f"verify: {result.shards:,} shards, {result.items:,} items, {size}: {len(result.faults):,} faults", flush=True
    )


if __name__ == "__main__":
    main()
