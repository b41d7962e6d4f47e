"""What there is of one version of a workdir: its datasets, their provenance, and the stages with their plans."""

import dataclasses
from typing import Any

from gen.dataset_checks import datasets_of, provenance_of
from gen.evidence import stages_of
from gen.planned import Planned, planned_stages
from gen.shard_checks import Fault
from gen.store import StoreError, read_json
from synthclip_jax.data.records import dataset_folder
from synthclip_jax.files.locations import Location, location
from synthclip_jax.workdir.versions import DATASET_NAME, Version


@dataclasses.dataclass(frozen=True)
class Contents:
    """What there is of one version.

    Attributes:
      name, data, provenance: of its dataset; the folder is None before any picture is planned, provenance as
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


def contents(workdir: Location, version: Version) -> Contents:
    """Reads plans and provenance."""
    name = _dataset(workdir, version)
    kept_name = f"{name}_filtered"
    data = dataset_folder(workdir, name, version.dataset) if name else None
    kept = dataset_folder(workdir, kept_name, version.dataset) if name else None
    provenance, faults = provenance_of(data)
    kept_provenance, wrong = provenance_of(kept)
    faults += wrong
    both: dict[str, Any] | None = None
    if provenance is not None or kept_provenance is not None:
        one, other = provenance or {}, kept_provenance or {}
        stages = {**stages_of(one), **stages_of(other)}
        if "filtered" in one:
            stages.setdefault("filtered", None)
        plans = {**one.get("plans", {}), **{"filtered": other.get("plans", {}).get("filtered")}}
        both = {"generation": {"stages": stages}, "plans": plans}
    folders = {"images": data, "recaption": data, "agreement": data, "filtered": kept}
    planned, wrong = planned_stages(workdir, version, folders, both)
    return Contents(name, data, provenance, kept_name, kept, kept_provenance, planned, faults + wrong)


def _dataset(workdir: Location, version: Version) -> str:
    """The name of a version's dataset, as its pictures are planned; else, of the one that is there."""
    try:
        plan = read_json(location(workdir) / "gen" / version.folder_name("images") / "plan.json", {"dataset": str})
        if DATASET_NAME.fullmatch(plan["dataset"]):
            return plan["dataset"]
    except StoreError:
        pass
    there = datasets_of(workdir, version.dataset)
    whole = [name for name in there if name.removesuffix("_filtered") == name or name[: -len("_filtered")] not in there]
    return whole[0].removesuffix("_filtered") if whole else ""
