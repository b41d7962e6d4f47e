"""Makes again what `gen.verify` found to be wrong, and nothing else; never makes it worse.

Before anything is touched, every plan is compared with provenance.json, with the commit records and with the
configuration: a plan that disagrees stops the repair. Then, stage by stage: a plan or a commit record that is lost is
written again from provenance.json, if the files are those that it names. What is damaged is set aside in
W/gen/set_aside and made again by its stage. Where the new bytes are the old ones (sprites, diffusers on the same
machine, greedy captions), what was set aside is deleted; where they are not, it is kept. What others were made from
(bank, captions, selection) and comes out otherwise is not taken: what is there is put back.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from gen.checks.contents import Contents, contents
from gen.checks.evidence import METADATA, measured
from gen.checks.planned import Planned
from gen.checks.repair_stage import RepairError, StageRepair, say
from gen.checks.set_aside import SetAside
from gen.checks.shards import Fault
from gen.checks.testsets import RECORD
from gen.checks.versions import unlisted
from gen.checks.workdir import verify
from gen.shards.local import run_local
from gen.shards.plans import PlanMismatch, differences, planned_by, there_and_expected
from gen.shards.versions import write_record, written_folders
from gen.stages import BY_NAME, FOLDERS, before
from synthclip_jax.config import from_plain, load_config, with_overrides
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError
from synthclip_jax.files.locations import Location, location
from synthclip_jax.files.storage import list_files
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import plan_digest
from synthclip_jax.workdir.versions import (
    Version,
    VersionError,
    check_inside,
    find_version,
    list_versions,
    versions_folder,
)
from synthclip_jax.workdir.versions import read_record as read_version

UNTOUCHED = "Nothing was changed"
_INPUTS = (
    "bank",
    "captions",
    "selected",
    "pictures",
    "shards",
    "scores",
)  # keys of plans: of what a stage is made from


def repair(
    workdir: Location, version: str, faults: Sequence[Fault], config_file: str | None = None, overrides: Sequence = ()
) -> None:
    """Makes everything again that the faults name and that can be made again; says what was done, and what was not.

    Args:
      config_file: the run's configuration; None: that of the dataset's provenance.
      overrides: of the configuration, `section.key=value`.

    Raises:
      RepairError: there is no configuration, or a plan disagrees with it, with provenance or with the records.
    """
    workdir = location(workdir)
    _restore_versions(workdir, faults)
    of = find_version(workdir, version)
    found = contents(of)
    check_inside(workdir, written_folders(of, *filter(None, [found.name])))
    broken = [stage for stage in FOLDERS if any(fault.stage == stage for fault in faults)]
    _compare_plans(found, broken)
    if not broken and not any(fault.stage.partition("/")[0] in ("finalize", "testsets") for fault in faults):
        return
    config = _config(found, of, config_file, overrides)
    stages = {
        stage: StageRepair(workdir, found, stage, [fault for fault in faults if fault.stage == stage])
        for stage in broken
    }
    for stage in broken:
        if not stages[stage].runs or (found.stages[stage].problem and found.stages[stage].plan is not None):
            continue  # what is lost is in provenance.json
        sound = not before(stage).intersection(broken)
        _compare_with_config(workdir, found, stage, config, config_file, strict=sound or stage == broken[0])
    aside = SetAside(workdir)
    try:
        renewed = {
            stage
            for stage in broken
            if stages[stage].repair(
                config,
                aside,
                functools.partial(_compare_with_config, workdir, found, stage, config, config_file, strict=True),
            )
        }
        _repair_testsets(workdir, faults, config, aside)
        _finalize(workdir, found, faults, config, aside, renewed)
    except BaseException:
        aside.put_back()
        raise
    for name in aside.kept():
        print(f"repair: what was there of {name} is kept in {aside.folder}", flush=True)


# ---- Before anything is touched --------------------------------------------------------------------------------------


def _restore_versions(workdir: Location, faults: Sequence[Fault]) -> None:
    """Writes records of versions again that are lost or damaged, from the provenance of their datasets."""
    if not any(fault.stage == "versions" for fault in faults):
        return
    aside, known = SetAside(workdir), []
    folder = versions_folder(workdir)
    for name in sorted(list_files(folder)):
        if name.endswith(".json"):
            try:
                known.append(read_version(folder / name))
            except VersionError:
                aside.take(folder / name)
    try:
        for number, provenance in unlisted(workdir, known):
            generation = provenance["generation"]
            stages = {stage: what["folder"] for stage, what in generation["stages"].items()}
            version = Version(workdir, number, provenance["version"], stages)
            if number not in [one.number for one in known] and "filtered" not in stages:
                if write_record(version, "made again from provenance.json"):
                    say(f"{version.record_path}: made again from provenance.json")
                    aside.drop(version.record_path)
                known.append(version)
        list_versions(workdir)
    except BaseException:
        aside.put_back()
        raise
    aside.put_back()  # what no provenance speaks of is left as it is


def _compare_plans(found: Contents, broken: Sequence[str]) -> None:
    """Stops at a plan that disagrees with provenance or with the commit records.

    Raises:
      RepairError: names the file, what is there and what is expected.
    """
    for this in found.stages.values():
        if this.other_plan:
            remedy = "Restore it, or delete it: --repair then writes the one of provenance.json"
            raise RepairError(f"{this.problem.partition('. Restore')[0]}. {UNTOUCHED}. {remedy}")
    for stage in broken:
        begun = found.stages[stage]
        if begun.plan is None:
            continue
        plans = begun.store.plans_of_records()
        own, others = plans.pop(plan_digest(begun.plan), []), plans
        if others and not own:
            digest, shards = next(iter(others.items()))
            raise RepairError(
                f"{begun.store.plan_path}: its digest is {plan_digest(begun.plan)}, expected {digest}, which all"
                f" {len(shards):,} commit records name. {UNTOUCHED}. Restore plan.json: with another one all that they"
                " stand for would count as not made"
            )


def _config(found: Contents, version: Version, config_file: str | None, overrides: Sequence[str]) -> Any:
    """The configuration to repair with: that of a file, or of provenance."""
    if config_file:
        config = load_config(config_file, overrides)
    else:
        provenance = found.provenance or found.kept_provenance
        if not provenance:
            raise RepairError(
                f"{found.data or 'dataset'}/provenance.json: no configuration of this workdir to repair it with."
                f" {UNTOUCHED}. Give the one that it was made with: --config=FILE"
            )
        try:
            config = from_plain({"name": found.name, "seed": provenance["seed"], "gen": provenance["config"]})
            config = with_overrides(config, overrides)
        except (KeyError, TypeError, AttributeError) as error:
            raise RepairError(
                f"{found.data}/provenance.json: its configuration is of another version of this program ({error})."
                f" {UNTOUCHED}. Give the one that the run was made with: --config=FILE"
            ) from error
    changed = ml_collections.ConfigDict(config)
    changed.gen.version = version.dataset
    _fill_recaption(changed.gen.recaption, found.stages.get("recaption"))
    return ml_collections.FrozenConfigDict(changed)


def _fill_recaption(settings: Any, this: Planned | None) -> None:
    """Where descriptions were asked for after the dataset was finished, their plan is all that says how."""
    if settings.model or this is None or this.plan is None:
        return
    source = this.plan.get("source", {})
    for key in settings:
        if key in this.plan or key in source:
            settings[key] = this.plan.get(key, source.get(key))


def _compare_with_config(
    workdir: Location, found: Contents, stage: str, config: Config, config_file: str | None, strict: bool
) -> dict[str, Any] | None:
    """The plan that a stage would follow with the configuration, compared with the one that is there.

    Args:
      strict: what the stage is made from is whole, so that it must be possible to tell.

    Raises:
      RepairError: the plan there is another one, or cannot be told.
    """
    this = found.stages[stage]
    if BY_NAME[stage].part_of:
        return this.plan
    given = f"--config={config_file}" if config_file else "the configuration in provenance.json"
    other = "" if config_file else ". It names no folders of a machine: give the run's own, --config=FILE"
    try:
        plan = planned_by(lambda: BY_NAME[stage].run(config, workdir, run_local), this.folder)
    except UserError as error:
        mismatch = error if isinstance(error, PlanMismatch) else error.__cause__
        lines = mismatch.lines if isinstance(mismatch, PlanMismatch) else []
        if not strict:  # what it is made from is damaged, so its digest is another one
            lines = [line for line in lines if line.partition(":")[0] not in _INPUTS]
        if lines:
            line = there_and_expected(lines[0])
            raise RepairError(f"{this.store.plan_path}: {line} by {given}. {UNTOUCHED}{other}") from error
        if strict:
            raise RepairError(f"{stage}: {error}. {UNTOUCHED}{other}") from error
        return None
    key = BY_NAME[stage].asked_by
    if plan is None and key and strict:
        raise RepairError(f"{stage}: {given} has no {key}. {UNTOUCHED}. Name it: --config.{key}=...")
    known = plan_digest(this.plan) if this.plan is not None else (this.evidence or {}).get("plan")
    if plan is not None and known and strict and plan_digest(plan) != known:
        line = there_and_expected(differences(this.plan or {}, plan)[0])
        raise RepairError(f"{this.store.plan_path}: {line} by {given}. {UNTOUCHED}{other}")
    return plan


# ---- What comes last -------------------------------------------------------------------------------------------------


def _repair_testsets(workdir: Location, faults: Sequence[Fault], config: Config, aside: SetAside) -> None:
    sets = sorted({fault.stage.partition("/")[2] for fault in faults if fault.stage.startswith("testsets/")})
    if not sets and not any(fault.stage == "testsets" for fault in faults):
        return
    from gen import testsets

    folder, before = workdir / "testsets", {}
    for name in sets:
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            before[path] = measured(path)["sha256"]
            aside.take(path)
    if any(fault.stage == "testsets" for fault in faults):
        aside.take(workdir / "gen" / RECORD)
    testsets.run(config, workdir)
    for name in sets:
        made = generated.commit_path(folder / name, 0).exists()
        say(f"testsets: {name} made again" if made else f"testsets: {name} cannot be made here, and is left as it is")
    for path, digest in before.items():
        if not path.exists():
            aside.put_back(path)
        elif path.suffix == ".json" or measured(path)["sha256"] == digest:
            aside.drop(path)
    aside.drop(workdir / "gen" / RECORD)


def _finalize(
    workdir: Location, found: Contents, faults: Sequence[Fault], config: Config, aside: SetAside, renewed: set[str]
) -> None:
    """Metadata, cards and provenance again, where they are wrong or name what has come out otherwise."""
    wrong = any(fault.stage == "finalize" for fault in faults)
    if not (wrong or renewed) or found.data is None or (found.provenance is None and found.kept_provenance is None):
        return
    lost = [data / generated.PROVENANCE for data, one in _datasets(found) if one == {}]
    if lost:
        left = [fault for fault in _remaining(workdir, found) if fault.stage not in ("finalize", "versions")]
        if left:
            say(f"{lost[0]}: not made again while what it has to name is wrong: {left[0]}")
            return
    damaged = [path for data, one in _datasets(found) for path in _damaged(data, one)]
    for path in (*lost, *damaged):
        aside.take(path)
    BY_NAME["finalize"].run(config, workdir, run_local, renewed)
    for path in (*lost, *damaged):
        if path.exists():
            say(f"finalize: {path.name} made again")
        if path.name != generated.CARD:  # somebody may have written in it
            aside.drop(path)


def _datasets(found: Contents) -> list[tuple[Location, Mapping[str, Any] | None]]:
    both = [(found.data, found.provenance), (found.kept, found.kept_provenance)]
    return [(data, one) for data, one in both if data is not None]


def _damaged(data: Location, provenance: Mapping[str, Any] | None) -> list[Location]:
    """Metadata that are not as provenance names them; all of them where it names none."""
    known = (provenance or {}).get("files", {})
    paths = [data / name for name in METADATA if (data / name).exists()]
    return [path for path in paths if known.get(path.name) != measured(path)]


def _remaining(workdir: Location, found: Contents) -> list[Fault]:
    return verify(workdir, found.data.name if found.data is not None else "").faults
