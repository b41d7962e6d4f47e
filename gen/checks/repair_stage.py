"""Repairs one stage: plan and records from provenance, the rest by running the stage for what is damaged alone."""

import contextlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gen.checks.contents import Contents
from gen.checks.evidence import measured
from gen.checks.planned import file_faults, named_files
from gen.checks.set_aside import SetAside
from gen.checks.shards import Fault
from gen.shards.local import Executor, LocalExecutor, run_local
from gen.shards.store import ShardOutput, StageStore, sha256
from gen.stages import BY_NAME
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError, list_files, write_atomic
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX, plan_digest

OTHERWISE = (
    "comes out otherwise than what the dataset was made from, so it is left as it is. Restore it from a copy, or start"
    " another version: python -m gen --new-version ..."
)
_EXACT = (generated.BANK, generated.SELECTED)  # what others were made from, to the last byte


class RepairError(UserError, ValueError):
    """Not to be repaired from here; the text says what to do."""


def say(text: str) -> None:
    """Says what was done, or was not."""
    print(f"repair: {text}", flush=True)


class _Guard(StageStore):
    """A store that takes a shard only if it is what was there, where others were made from it."""

    def __init__(self, store: StageStore, expected: Mapping[int, Mapping[str, Any]], exact: bool):
        super().__init__(store.folder, store.data_folder)
        self.plan_digest, self._expected, self._exact = store.plan_digest, expected, exact
        self.refused: list[int] = []

    def commit(self, shard: int, output: ShardOutput, seconds: float = 0.0) -> dict[str, Any]:
        """See `StageStore.commit`."""
        known = self._expected.get(shard)
        if self._exact and known is not None:
            made = {name: sha256(data) for name, data in output.files.items()}
            if made != {name: meta["sha256"] for name, meta in known["files"].items()}:
                self.refused.append(shard)
                if "count" not in known:
                    raise RepairError(f"{self.folder}: shard {shard} {OTHERWISE}")
                return {**known, "host": "", "plan": self.plan_digest}
        return super().commit(shard, output, seconds)


class _Guarded(LocalExecutor):
    """Commits to a guard, and makes these shards alone; None: all."""

    def __init__(self, guard: _Guard, wanted: Sequence[int] | None):
        super().__init__()
        self._guard, self._wanted = guard, wanted

    def __call__(self, store: StageStore, shards: Sequence[Mapping[str, Any]], *arguments: Any, **keywords: Any) -> Any:
        """See `Executor`."""
        shards = [shard for shard in shards if self._wanted is None or shard["index"] in self._wanted]
        return super().__call__(self._guard, shards, *arguments, **keywords)


class StageRepair:
    """Repairs one stage."""

    def __init__(self, workdir: Location, found: Contents, stage: str, faults: Sequence[Fault]):
        """Looks at what there is; changes nothing.

        Args:
          faults: of this stage.
        """
        self._workdir, self._found, self._stage = workdir, found, stage
        self._this = this = found.stages[stage]
        store = this.store
        shards = sorted({fault.shard for fault in faults if fault.shard is not None})
        self._expected = self._known(store, shards)
        self._records = [shard for shard in shards if self._only_record(store, shard)]
        self._shards = [shard for shard in shards if shard not in self._records]
        wrong = any(True for _ in file_faults(this))
        self._files = [this.folder / name for name in BY_NAME[stage].files] if wrong else []

    @property
    def runs(self) -> bool:
        """Whether the stage has to run: not all that is wrong can be written again from provenance."""
        return bool(self._shards or self._files or (self._this.problem and self._this.plan is None))

    def repair(self, config: Config, aside: SetAside, compare: Callable[[], dict[str, Any] | None]) -> bool:
        """Makes again what is wrong.

        Args:
          compare: compares the plan with the configuration once more, now that what the stage is made from is whole.

        Returns:
          Whether something came out otherwise than it was.
        """
        if self._this.problem and self._this.plan is not None:
            self._restore_plan(self._this.plan, aside)
        plan = compare() if self.runs else None
        if self._this.problem and self._this.plan is None:
            self._restore_plan(plan, aside)
        store = StageStore(self._this.folder, self._this.data)
        store.plan_digest = plan_digest(store.read_plan())
        for shard in self._records:
            store.restore(self._expected[shard])
            say(f"{self._stage}: the commit record of shard {shard} written again, its files are whole")
        if not (self._shards or self._files):
            return False
        taken = [path for shard in self._shards for path in self._paths(store, shard)]
        there = {shard: {"files": self._measured(store, shard)} for shard in self._shards}
        before = self._digests()
        for path in (*taken, *self._files):
            aside.take(path)
        exact = self._stage == "captions" and "balance" in self._found.stages
        guard = _Guard(store, {shard: one for shard, one in there.items() if one["files"]} | self._expected, exact)

        # Balance selects from all shards; elsewhere what is not made yet is left alone.
        wanted = None if self._stage == "balance" else self._shards
        try:
            self._run(config, _Guarded(guard, wanted))
        except BaseException:
            aside.put_back(*taken, *self._files)
            raise
        changed = [self._said(store, shard, guard, aside) for shard in self._shards]
        return any([*changed, *[self._compared(path, before.get(path), aside) for path in self._files]])

    def _digests(self) -> dict[Location, str]:
        """What is known of the files beside the shards: by the last of them, by later stages, by provenance."""
        files: dict[str, Any] = {}
        with contextlib.suppress(StoreError, KeyError, TypeError):
            files |= named_files(self._this) if self._files else {}
        images = self._found.stages.get("images")
        if self._stage == "balance" and images and images.plan:
            files[generated.SELECTED] = {"sha256": images.plan.get("selected")}
        files |= (self._this.evidence or {}).get("files", {})
        return {self._this.folder / name: meta["sha256"] for name, meta in files.items()}

    def _run(self, config: Config, executor: Executor) -> None:
        stage = BY_NAME[self._stage]
        if stage.shards_alone and not self._files:
            pkgutil.resolve_name(stage.shards_alone)(config, self._workdir, executor)
        else:
            stage.run(config, self._workdir, run_local if stage.part_of else executor)

    @property
    def _others_begun(self) -> bool:
        """Whether something was made from what this stage makes."""
        return any(self._stage in BY_NAME[stage].reads for stage in self._found.stages)

    def _restore_plan(self, plan: Mapping[str, Any] | None, aside: SetAside) -> None:
        if plan is None:
            raise RepairError(f"{self._this.problem}: no plan is known to put in its place. Give --config=FILE")
        path = self._this.store.plan_path
        aside.take(path)
        write_atomic(path, to_json(state_files.seal(plan)))
        aside.drop(path)  # it was no plan at all, or the same one with a damaged checksum
        say(f"{self._stage}: plan.json written again")

    def _known(self, store: StageStore, shards: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What is known of shards: from provenance, or from their own records if those are whole."""
        known = {record["shard"]: record for record in (self._this.evidence or {}).get("records", ())}
        for shard in shards:
            path = generated.commit_path(store.folder, shard)
            if shard in known or not path.exists():
                continue
            if record := generated.parse_commit(path.name, path.read_bytes()):
                known[shard] = record
        return {shard: known[shard] for shard in shards if shard in known}

    def _only_record(self, store: StageStore, shard: int) -> bool:
        """Whether only the record is wrong: the files are those that it named."""
        expected, path = self._expected.get(shard), generated.commit_path(store.folder, shard)
        whole = path.exists() and generated.parse_commit(path.name, path.read_bytes()) == expected
        return expected is not None and not whole and store.has_files(expected)

    def _paths(self, store: StageStore, shard: int) -> list[Location]:
        """The files of a shard and its record."""
        expected = self._expected.get(shard)
        names = list(expected["files"]) if expected else self._listed(store, shard)
        return [*(store.path(name) for name in names), generated.commit_path(store.folder, shard)]

    def _listed(self, store: StageStore, shard: int) -> list[str]:
        """The files that look like a shard's, where no record tells."""
        of_shard = re.compile(rf"[^.].*-{shard:05d}-of-\d+(.*)")
        names = [name for name in list_files(store.folder) if of_shard.fullmatch(name)]
        for name in list_files(self._this.data) if self._this.data is not None else ():
            found = of_shard.fullmatch(name)
            if found and found[1] in BY_NAME[self._stage].endings:
                names.append(f"{DATA_PREFIX}{name}")
        return names

    def _measured(self, store: StageStore, shard: int) -> dict[str, dict[str, Any]]:
        return {name: measured(store.path(name)) for name in self._listed(store, shard)}

    def _said(self, store: StageStore, shard: int, guard: _Guard, aside: SetAside) -> bool:
        """Says how a shard came out; what was set aside of it is deleted if it is the same, or put back if refused."""
        paths, expected = self._paths(store, shard), self._expected.get(shard)
        if shard in guard.refused:
            aside.put_back(*paths)
            say(f"{self._stage}: shard {shard} {OTHERWISE}")
            return False
        now = store.record(shard)
        if now is None:
            raise StoreError(f"{store.folder}: shard {shard} was not made again")
        known = expected["files"] if expected else {}
        changed = sorted(
            name for name, meta in now["files"].items() if meta["sha256"] != known.get(name, {}).get("sha256")
        )
        what = f"other bytes than before: {', '.join(changed)}" if changed else "the same bytes as before"
        say(f"{self._stage}: shard {shard} made again, {what}")
        for path in paths if not changed else paths[-1:]:
            aside.drop(path)
        return bool(changed)

    def _compared(self, path: Location, before: str | None, aside: SetAside) -> bool:
        """Whether a file came out otherwise than it was."""
        same = before is None or (path.exists() and measured(path)["sha256"] == before)
        if not same and path.name in _EXACT and self._others_begun:
            aside.restore(path)
            say(f"{self._stage}: {path.name} {OTHERWISE}")
            return False
        if same:
            aside.drop(path)
            say(f"{self._stage}: {path.name} made again")
        else:
            say(f"{self._stage}: {path.name} made again, other bytes than before")
        return not same
