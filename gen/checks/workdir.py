"""Checks one version of a workdir: all plans, all shards, and the files beside them."""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence

from gen.checks.contents import Contents, contents
from gen.checks.datasets import dataset_faults
from gen.checks.planned import file_faults, missing_shards, shard_checks
from gen.checks.shards import Fault, ShardCheck, check_shard
from gen.checks.testsets import testset_checks
from gen.checks.versions import version_faults
from gen.shards.finished_images import images_digest
from gen.shards.progress import Progress
from gen.stages import BY_NAME, STAGES
from synthclip_jax.devices.cores import core_count
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import VersionError, choose_version, list_versions

ORDER = ("versions", *(stage.name for stage in STAGES), "testsets")


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
      faults: everything that is wrong, stage by stage.
      shards, items, bytes: how much was read.
      unfinished: a line for each stage that is not at its end and need not be.
    """

    faults: list[Fault]
    shards: int
    items: int
    bytes: int
    unfinished: list[str] = dataclasses.field(default_factory=list)


def verify(workdir: Location, version: str = "", processes: int = 0) -> Result:
    """Reads all of one version of a workdir.

    Args:
      version: of the dataset; empty: the newest.
      processes: that read and decode; 0: one for each core.

    Raises:
      StoreError: nothing has been generated in this workdir.
      VersionError: there is no such version.
    """
    try:
        versions = list_versions(workdir)
    except VersionError as error:
        return Result([Fault("versions", None, str(error))], 0, 0, 0)
    found = contents(of := choose_version(versions, version))
    faults = [*version_faults(versions, of, found.provenance), *found.faults]
    sets = list(testset_checks(workdir, faults))
    checks: list[ShardCheck] = []
    unfinished: list[str] = []
    if not (found.stages or faults or sets or found.provenance):
        raise StoreError(f"{workdir}: nothing has been generated here: python -m gen --config=... --workdir=...")
    for stage, this in found.stages.items():
        faults += file_faults(this)
        if not BY_NAME[stage].sharded or this.plan is None:
            continue
        try:
            of_stage = list(shard_checks(found.stages, stage))
        except (StoreError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            faults.append(Fault(stage, None, f"{this.folder}: what is planned cannot be told: {_said(error)}"))
            continue
        if not this.required and (missing := set(missing_shards(this, len(of_stage)))):
            unfinished.append(f"{stage}: {len(missing):,} of {len(of_stage):,} shards are not made yet")
            of_stage = [check for check in of_stage if check.shard not in missing]
        checks += of_stage
    checks += sets
    results = list(_run(checks, processes))
    for wrong, _, _ in results:
        faults += wrong
    faults += _ends(found)
    faults.sort(
        key=lambda fault: (ORDER.index(fault.stage.partition("/")[0]), fault.shard is not None, fault.shard or 0)
    )
    items, size = sum(count for _, count, _ in results), sum(size for _, _, size in results)
    return Result(list(dict.fromkeys(faults)), len(checks), items, size, unfinished)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else repr(error)


def _ends(found: Contents) -> Iterator[Fault]:
    """Whether stages agree with those that they were made from, and each dataset with its shards."""
    images = found.stages.get("images")
    if images is None or images.plan is None or found.data is None:
        if found.data is not None:
            yield from dataset_faults(found.data, found.provenance, {})
        return
    records = images.store.committed()
    yield from dataset_faults(found.data, found.provenance, records, images.plan.get("shards", 0))
    if found.kept is not None and "filtered" in found.stages:
        kept = found.stages["filtered"].store.committed()
        yield from dataset_faults(found.kept, found.kept_provenance, kept, images.plan.get("shards", 0))
        if found.kept_provenance is None and found.provenance is not None:
            yield Fault(
                "finalize", None, f"{found.kept / generated.PROVENANCE}: missing, though {found.kept_name} is planned"
            )
    if len(records) == images.plan.get("shards"):
        digest = images_digest(records.values())
        for stage, this in found.stages.items():
            plan = (this.plan if BY_NAME[stage].shards_of == "images" else None) or {}
            if plan.get("pictures", digest) != digest:
                yield Fault(stage, None, f"{this.folder}: made from other images than those that are there")


def _run(checks: Sequence[ShardCheck], processes: int) -> Iterator[tuple[list[Fault], int, int]]:
    """Checks all shards, in processes of their own: most of the time goes into Python."""
    processes = min(processes or core_count(), len(checks))
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
