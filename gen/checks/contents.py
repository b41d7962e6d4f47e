"""What there is of one version of a workdir: its datasets, their provenance, and the stages with their plans."""

import dataclasses
from typing import Any

from gen.checks.datasets import datasets_of, provenance_of
from gen.checks.planned import Planned, planned_stages
from gen.checks.shards import Fault
from gen.shards.plans import read_json
from gen.stages import STAGES
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import DATASET_NAME, FILTERED, Version


@dataclasses.dataclass(frozen=True)
class Contents:
    """What there is of one version.

    Attributes:
      name, data, provenance: of its dataset; the folder is None before any image is planned, provenance as
        `provenance_of` has it.
      kept_name, kept, kept_provenance: of the dataset without the pairs of low agreement.
      stages: those that were begun, or must be there.
      faults: of plans and provenance.
    """

    name: str
    data: Location | None
    provenance: dict[str, Any] | None
    kept_name: str
    kept: Location | None
    kept_provenance: dict[str, Any] | None
    stages: dict[str, Planned]
    faults: list[Fault]


def contents(version: Version) -> Contents:
    """Reads plans and provenance."""
    name = _dataset(version)
    kept_name = name + FILTERED
    data = version.dataset_folder(name) if name else None
    kept = version.dataset_folder(kept_name) if name else None
    provenance, faults = provenance_of(data)
    kept_provenance, wrong = provenance_of(kept)
    faults += wrong
    both: dict[str, Any] | None = None
    if provenance is not None or kept_provenance is not None:
        one, other = provenance or {}, kept_provenance or {}
        stages = {**generated.stages_of(one), **generated.stages_of(other)}
        if "filtered" in one:
            stages.setdefault("filtered", None)
        plans = {**one.get("plans", {}), **{"filtered": other.get("plans", {}).get("filtered")}}
        both = {"generation": {"stages": stages}, "plans": plans}
    folders = {stage.name: kept if stage.part_of else data for stage in STAGES if stage.dataset}
    planned, wrong = planned_stages(version, folders, both)
    return Contents(name, data, provenance, kept_name, kept, kept_provenance, planned, faults + wrong)


def _dataset(version: Version) -> str:
    """The name of a version's dataset, as its images are planned; else, of the one that is there."""
    try:
        plan = read_json(version.stage_folder("images") / generated.PLAN, {"dataset": str})
        if DATASET_NAME.fullmatch(plan["dataset"]):
            return plan["dataset"]
    except StoreError:
        pass
    there = datasets_of(version.workdir, version.dataset)
    whole = [name for name in there if not name.endswith(FILTERED) or name.removesuffix(FILTERED) not in there]
    return whole[0].removesuffix(FILTERED) if whole else ""
