"""What must be there of each stage, by its plan, by provenance, and by what later stages have made of it."""

import dataclasses
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from gen.checks.evidence import measured, published
from gen.checks.shards import Fault, ShardCheck
from gen.shards.plans import differences, read_json, there_and_expected
from gen.shards.store import StageStore
from gen.stages import BY_NAME, FOLDERS, before
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location, parquet_source
from synthclip_jax.files.storage import StoreError, list_files
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import plan_digest
from synthclip_jax.workdir.versions import Version


@dataclasses.dataclass(frozen=True)
class Planned:
    """A stage that was begun, or that must be there.

    Attributes:
      stage: its name.
      folder, data: of the stage, and of the dataset whose files it writes; None: it writes none.
      plan: what it makes; None: that cannot be told.
      evidence: what provenance holds of it; None: nothing.
      required: it must be at its end.
      problem: what is wrong with its plan.json; empty: nothing.
      other_plan: a plan can be read there, and it is another one.
    """

    stage: str
    folder: Location
    data: Location | None
    plan: dict[str, Any] | None
    evidence: Mapping[str, Any] | None
    required: bool
    problem: str = ""
    other_plan: bool = False

    @property
    def store(self) -> StageStore:
        """The stage's folder, for reading what the plan has made."""
        store = StageStore(self.folder, self.data)
        store.plan_digest = plan_digest(self.plan) if self.plan is not None else ""
        return store


def planned_stages(
    version: Version, folders: Mapping[str, Location | None], provenance: Mapping[str, Any] | None
) -> tuple[dict[str, Planned], list[Fault]]:
    """All stages that were begun or must be there, and what is wrong with their plans.

    Args:
      folders: of each stage, the dataset whose files it writes.
      provenance: of the dataset; empty: it has one that cannot be read; None: it is not finalized.
    """
    begun = {stage for stage in FOLDERS if _begun(version.stage_folder(stage))}
    required = set().union(*map(before, begun))
    if provenance is not None:
        required |= {*before("finalize"), *generated.stages_of(provenance)}
    found, faults = {}, []
    for stage in FOLDERS:
        if stage not in begun | required:
            continue
        folder = version.stage_folder(stage)
        evidence = generated.stages_of(provenance or {}).get(stage) or None
        plan, problem, other = _compared(StageStore(folder), evidence, (provenance or {}).get("plans", {}).get(stage))
        if problem:
            faults.append(Fault(stage, None, problem))
        if evidence and evidence["folder"] != folder.name:
            faults.append(Fault("versions", None, f"{folder}: provenance.json names {evidence['folder']} in its place"))
        found[stage] = Planned(stage, folder, folders.get(stage), plan, evidence, stage in required, problem, other)
    return found, faults


def _begun(folder: Location) -> bool:
    names = {**list_files(folder), **list_files(folder / generated.COMMITS)}
    return any(not name.startswith(".") for name in names)


def _compared(
    store: StageStore, evidence: Mapping[str, Any] | None, said: Mapping[str, Any] | None
) -> tuple[dict[str, Any] | None, str, bool]:
    """The plan to check by, what is wrong with the one that is there, and whether that is another one.

    Args:
      said: the plan in provenance, without the places of files.
    """
    whole = dict(said) if said is not None and (evidence is None or plan_digest(said) == evidence["plan"]) else None
    if not store.plan_path.exists():
        return whole, f"{store.plan_path}: missing", False
    try:
        plan = store.read_plan(expected=whole)
    except StoreError as error:
        there = store.read_damaged_plan()
        return whole, str(error), there is not None and there != whole
    if said is not None and (lines := differences(published(plan), state_files.unsealed(said))):
        return whole, f"{store.plan_path}: {there_and_expected(lines[0])} (provenance.json)", True
    if evidence and plan_digest(plan) != evidence["plan"]:
        return None, f"{store.plan_path}: not the plan that provenance.json names", True
    return plan, "", False


def shard_checks(planned: Mapping[str, Planned], stage: str) -> Iterator[ShardCheck]:
    """What is to be checked of each planned shard of a stage.

    Raises:
      StoreError: the captions that the images were planned from are not those that are there.
      KeyError, TypeError, ValueError: the plan does not say what it must.
    """
    this = planned[stage]
    assert this.plan is not None
    records = {record["shard"]: record for record in (this.evidence or {}).get("records", ())}
    base = ShardCheck(stage, str(this.folder), str(this.data or this.folder), this.store.plan_digest, 0, 1)
    known = BY_NAME[stage].planned
    for check in pkgutil.resolve_name(known)(base, planned) if known else _one_by_one(base, planned):
        yield dataclasses.replace(check, expected=records.get(check.shard))


def _one_by_one(base: ShardCheck, planned: Mapping[str, Planned]) -> Iterator[ShardCheck]:
    """One shard for each of those that a stage takes one by one."""
    count = _plan(planned, base.stage).get("shards", _plan(planned, BY_NAME[base.stage].shards_of).get("shards"))
    if count is None:
        raise KeyError("shards")
    return (dataclasses.replace(base, shard=index) for index in range(bounded(count)))


def _plan(planned: Mapping[str, Planned], stage: str) -> Mapping[str, Any]:
    return planned[stage].plan or {}


def bounded(shards: int) -> int:
    """A number of shards as a plan says it.

    Raises:
      ValueError: there cannot be as many.
    """
    if not 0 <= shards < 10**7:
        raise ValueError(f"{shards} shards")
    return shards


def caption_shards(base: ShardCheck, planned: Mapping[str, Planned]) -> Iterator[ShardCheck]:
    """The ids of each shard of captions."""
    plan = _plan(planned, "captions")
    for index in range(bounded(plan["shards"])):
        start = index * plan["shard_size"]
        numbers = range(start, min(start + plan["shard_size"], plan["captions"]))
        if len(numbers) > 10**8:
            raise ValueError(f"{len(numbers)} captions in a shard")
        ids = tuple("{:06d}-{:04d}".format(*divmod(number, plan["per_concept"])) for number in numbers)
        yield dataclasses.replace(base, shard=index, items=len(ids), ids=ids)


def image_shards(base: ShardCheck, planned: Mapping[str, Planned]) -> Iterator[ShardCheck]:
    """The ids of each shard of images, and their captions."""
    import numpy as np
    import pyarrow.parquet as pq

    from gen.shards.image_order import image_order

    plan, path = _plan(planned, "images"), planned["balance"].folder / generated.SELECTED
    if not path.exists():
        raise StoreError(f"{path}: missing")
    if measured(path)["sha256"] != plan["selected"]:
        raise StoreError(f"{path}: not the captions that the images were planned from")
    selected = pq.read_table(parquet_source(path), columns=["id", "caption"])
    if len(selected) * plan["per_caption"] != plan["pictures"]:
        raise StoreError(f"{path}: {len(selected)} captions, and {plan['pictures']} images are planned")
    order = image_order(selected.column("id").to_pylist(), plan["per_caption"], plan["seed"])
    for index in range(bounded(plan["shards"])):
        start = index * plan["shard_size"]
        captions, numbers = np.divmod(order[start : start + plan["shard_size"]], plan["per_caption"])
        rows = selected.take(captions)
        ids = zip(rows.column("id").to_pylist(), numbers.tolist(), strict=True)
        yield dataclasses.replace(
            base,
            shard=index,
            items=len(captions),
            ids=tuple(f"{identity}-{number:02d}" for identity, number in ids),
            captions=tuple(rows.column("caption").to_pylist()),
            size=plan["size"],
        )


def filtered_shards(base: ShardCheck, planned: Mapping[str, Planned]) -> Iterator[ShardCheck]:
    """What the pairs of each shard were taken from."""
    images, min_score = planned["images"], float(_plan(planned, "filtered").get("min_score", -1))
    source = (str(images.data), min_score, _plan(planned, "images").get("shards", 0))
    for check in _one_by_one(base, planned):
        yield dataclasses.replace(check, source=source if images.data else None)


def missing_shards(this: Planned, shards: int) -> list[int]:
    """Shards that have no commit record at all."""
    names = list_files(this.folder / generated.COMMITS)
    return [index for index in range(shards) if f"{index:05d}.json" not in names]


def file_faults(this: Planned) -> Iterator[Fault]:
    """Faults of the files that a stage writes beside its shards."""
    names = BY_NAME[this.stage].files
    if not names:
        return
    expected = dict((this.evidence or {}).get("files", {}))
    last = this.folder / names[-1]
    if not last.exists():
        if this.required or names[-1] in expected:
            yield Fault(this.stage, None, f"{last}: missing")
    elif not expected:
        try:
            expected = named_files(this)
        except (StoreError, KeyError, TypeError) as error:
            yield Fault(this.stage, None, f"{last}: damaged ({error})")
    for name, meta in expected.items():
        path = this.folder / name
        if path == last and not path.exists():
            continue
        if not path.exists():
            yield Fault(this.stage, None, f"{path}: missing")
        elif measured(path)["sha256"] != meta["sha256"]:
            yield Fault(this.stage, None, f"{path}: not the bytes that were written (sha256)")


def named_files(this: Planned) -> dict[str, Any]:
    """What the last file of a stage says of the others.

    Raises:
      StoreError, KeyError, TypeError: it is damaged.
    """
    names = BY_NAME[this.stage].files
    meta = read_json(this.folder / names[-1])
    files = {generated.BANK: meta[generated.BANK]} if this.stage == "concepts" else meta["files"]
    for name, one in files.items():
        if name not in names or not isinstance(one["sha256"], str):
            raise KeyError(name)
    return files
