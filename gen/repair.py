"""Makes again what `gen.verify` found to be wrong: those shards, and nothing else.

The commit records of faulty shards are deleted and their stages run: as after a crash, what has no record is made. With
an engine that repeats itself (sprites, diffusers on the same machine, greedy captions) the bytes are the old ones.
"""

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from gen.executor import run_local
from gen.shard_checks import Fault
from gen.store import StageStore, StoreError, read_json, stage_folder
from synthclip_jax.config import from_plain, load_config
from synthclip_jax.errors import UserError
from synthclip_jax.generated import find_version
from synthclip_jax.locations import Location
from synthclip_jax.records import dataset_folder

# What is written last by the stages that are not only shards; without it the stage does its own work again.
_LAST = {"concepts": "bank.json", "balance": "balance.json"}
ORDER = ("concepts", "captions", "balance", "images", "recaption", "agreement", "finalize")


class RepairError(UserError, ValueError):
    """Not to be repaired from here; the text says what to do."""


def repair(
    workdir: Location, version: str, faults: Sequence[Fault], config_file: str | None = None, overrides: Sequence = ()
) -> None:
    """Makes everything again that the faults name.

    Args:
      config_file: the run's configuration; None: that of the dataset's provenance.

    Raises:
      RepairError: there is no configuration, or a plan itself is damaged.
      PlanMismatch: the configuration is not the one that the workdir was made with.
    """
    found = find_version(workdir, version)
    config = ml_collections.ConfigDict(
        load_config(config_file, overrides) if config_file else _found_config(workdir, found.dataset)
    )
    config.gen.version = found.dataset
    config = ml_collections.FrozenConfigDict(config)
    broken = {stage for stage in ORDER if any(fault.stage == stage for fault in faults)}
    if broken - {"concepts", "captions"} and any(fault.stage == "images" for fault in faults):
        broken.add("finalize")  # provenance names the bytes
    for stage in ORDER:
        if stage not in broken:
            continue
        if stage == "finalize":
            path = dataset_folder(workdir, config.name, found.dataset) / "provenance.json"
            if not path.exists() or not any(fault.stage == stage for fault in faults):
                continue
            _delete(path)
        else:
            before = _forget(workdir, stage, config, [fault for fault in faults if fault.stage == stage])
        importlib.import_module(f"gen.{stage}").run(config, workdir, run_local)
        if stage != "finalize":
            _say_what_changed(workdir, stage, config, before)


def _found_config(workdir: Location, version: str) -> Any:
    """The configuration in the provenance of the version's dataset."""
    plan = stage_folder(workdir, "images", version) / "plan.json"
    name = read_json(plan)["dataset"] if plan.exists() else ""
    path = dataset_folder(workdir, name or "-", version) / "provenance.json"
    try:
        provenance = read_json(path)
        return from_plain({"name": provenance["name"], "seed": provenance["seed"], "gen": provenance["config"]})
    except (StoreError, OSError, KeyError, TypeError) as error:
        raise RepairError(
            f"{path}: no configuration of this workdir to repair it with ({error}). Give the one that it was made with:"
            " --config=FILE"
        ) from error


def _forget(workdir: Location, stage: str, config: Any, faults: Sequence[Fault]) -> dict[int, dict[str, Any]]:
    """Deletes the records of faulty shards.

    Returns:
      What they said of their files, by shard, where they can be read.
    """
    version = config.gen.version
    folder = stage_folder(workdir, stage, version)
    store = StageStore(folder, dataset_folder(workdir, config.name, version))
    before = {}
    for shard in sorted({fault.shard for fault in faults if fault.shard is not None}):
        with contextlib.suppress(StoreError, KeyError, TypeError):
            before[shard] = read_json(folder / "commits" / f"{shard:05d}.json")["files"]
        store.forget(shard)
    if stage in _LAST:
        _delete(folder / _LAST[stage])
    return before


def _delete(path: Location) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _say_what_changed(workdir: Location, stage: str, config: Any, before: dict[int, dict[str, Any]]) -> None:
    folder = stage_folder(workdir, stage, config.gen.version)
    for shard, files in before.items():
        now = read_json(folder / "commits" / f"{shard:05d}.json")["files"]
        changed = sorted(name for name in files if files[name].get("sha256") != now.get(name, {}).get("sha256"))
        what = f"other bytes than before: {', '.join(changed)}" if changed else "the same bytes as before"
        print(f"repair: {stage}: shard {shard} made again, {what}", flush=True)
