"""Checks the test sets in W/testsets that `gen.testsets` has made: those that its record names are there and whole."""

from collections.abc import Iterator

from gen.checks.shards import Fault, ShardCheck
from gen.shards.plans import read_json
from gen.shards.store import StageStore
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location, location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError, list_files, write_atomic
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import plan_digest

RECORD = "testsets.json"  # in W/gen: which sets there are, each with the digest of its plan
STAGE = "testsets"


def note_testsets(workdir: Location) -> None:
    """Writes down which sets are there, so that one that is lost is missed."""
    folder = location(workdir) / "testsets"
    sets = {name: plan_digest(StageStore(folder / name).read_plan()) for name in _made(folder)}
    data = to_json(state_files.seal({"sets": sets}))
    path = location(workdir) / "gen" / RECORD
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


def _made(folder: Location) -> list[str]:
    """Folders that look as if `gen.testsets` had made them; others hold sets that people brought."""
    if not folder.is_dir():
        return []
    sets = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path.name for path in sets if (path / generated.PLAN).exists() or (path / generated.COMMITS).is_dir()]


def testset_checks(workdir: Location, faults: list[Fault]) -> Iterator[ShardCheck]:
    """What to check of each set, after noting what is wrong with records and plans."""
    folder, record = location(workdir) / "testsets", location(workdir) / "gen" / RECORD
    made, sets = _made(folder), {}
    if record.exists():
        try:
            sets = read_json(record, {"sets": dict})["sets"]
        except StoreError as error:
            faults.append(Fault(STAGE, None, str(error)))
    elif made:
        others = [name for name in made if "check" in _raw(folder / name / generated.PLAN)]
        if others:  # made by a version of this program that keeps the record
            faults.append(Fault(STAGE, None, f"{record}: missing"))
    for name in sorted({*made, *sets}):
        store = StageStore(folder / name)
        if not store.plan_path.exists():
            faults.append(Fault(f"{STAGE}/{name}", None, f"{store.plan_path}: missing"))
            continue
        try:
            digest = plan_digest(store.read_plan())
        except StoreError as error:
            faults.append(Fault(f"{STAGE}/{name}", None, str(error)))
            continue
        if sets.get(name, digest) != digest:
            faults.append(Fault(f"{STAGE}/{name}", None, f"{store.plan_path}: not the plan that {RECORD} names"))
        if name in sets or "00000.json" in list_files(store.folder / generated.COMMITS):
            yield ShardCheck(f"{STAGE}/{name}", str(store.folder), str(store.folder), digest, 0, 1)


def _raw(path: Location) -> dict:
    try:
        return state_files.read(path, "", sealed=False)
    except (OSError, state_files.StateError):
        return {}
