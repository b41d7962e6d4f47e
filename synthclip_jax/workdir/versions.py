"""Where a workdir keeps what generation makes: the folder of each stage, and which version of the dataset is meant.

    W/gen/STAGE                    of the first version
    W/gen/STAGE@2                  of the second one, if that stage changed; otherwise it uses the first one's folder
    W/gen/versions/00002.json      which folders belong to the second version; never changed once it is there
    W/dataset/NAME/1.1.0           the second version's images

`python -m gen --new-version` starts a version. A version is called by its dataset's, MAJOR.MINOR.PATCH
(`config.gen.version`), and the newest is meant where none is named. It is looked up once, and the `Version` handed on:
another one may be started meanwhile.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.folders import is_inside
from synthclip_jax.files.locations import Location, is_url, location
from synthclip_jax.workdir.generated import PLAN
from synthclip_jax.workdir.run_record import read_run

FIRST = "1.0.0"
_NAME = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}")
_RECORD = re.compile(r"\d{5}\.json")
# A dataset's name, as the configuration allows it; that without the pairs of low agreement is called so too.
DATASET_NAME = re.compile(r"[a-z][a-z0-9_]*")
FILTERED = "_filtered"  # behind the name of a dataset: that without the pairs of low agreement


class VersionError(UserError, ValueError):
    """A version that the workdir does not have, or whose record is damaged; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of what a workdir generates.

    Attributes:
      workdir: that it is of.
      number: counts from 1.
      dataset: the dataset's version, MAJOR.MINOR.PATCH.
      stages: names of folders in `W/gen` by stage; a stage that is not in it has the name that its number gives.
    """

    workdir: Location
    number: int
    dataset: str
    stages: Mapping[str, str]

    def folder_name(self, stage: str) -> str:
        """The name of a stage's folder in `W/gen`."""
        return self.stages.get(stage) or (stage if self.number == 1 else f"{stage}@{self.number}")

    def stage_folder(self, stage: str) -> Location:
        """The folder of a stage: `W/gen/STAGE`, or `W/gen/STAGE@2` where a later version changed it."""
        return self.workdir / "gen" / self.folder_name(stage)

    def dataset_folder(self, name: str) -> Location:
        """The folder of a dataset, see the function."""
        return dataset_folder(self.workdir, name, self.dataset)

    @property
    def record_path(self) -> Location:
        """Where its record is."""
        return record_path(self.workdir, self.number)

    def next(self, order: tuple[str, ...], changed: str, newest: "Version", dataset: str = "") -> "Version":
        """The version after the newest: as this one, but the changed stage and all after it get folders of their own.

        Args:
          order: all stages, in the order in which they run.
          dataset: its name; empty: the newest's with the next minor number.
        """
        number, later = newest.number + 1, order[order.index(changed) :]
        stages = {stage: f"{stage}@{number}" if stage in later else self.folder_name(stage) for stage in order}
        major, minor, _ = map(int, newest.dataset.split("."))
        return Version(self.workdir, number, dataset or f"{major}.{minor + 1}.0", stages)


def versions_folder(workdir: str | os.PathLike | Location) -> Location:
    """Where the records of a workdir's versions are."""
    return location(workdir) / "gen" / "versions"


def record_path(workdir: str | os.PathLike | Location, number: int) -> Location:
    """Where the record of a version is."""
    return versions_folder(workdir) / f"{number:05d}.json"


def list_versions(workdir: str | os.PathLike | Location) -> list[Version]:
    """All versions of a workdir, oldest first: at least one, which may not have begun.

    Raises:
      VersionError: a record is damaged, or names a folder outside the workdir.
    """
    folder = versions_folder(workdir)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [read_record(folder / name) for name in names if _RECORD.fullmatch(name)]
    return found if found and found[0].number == 1 else [Version(location(workdir), 1, _first(workdir), {}), *found]


def find_version(workdir: str | os.PathLike | Location, wanted: str = "") -> Version:
    """The version that is called so; the newest if none is named.

    Raises:
      VersionError: there is none of this name. Where nothing has been generated, any name will do.
    """
    return choose_version(list_versions(workdir), wanted)


def choose_version(versions: Sequence[Version], wanted: str = "") -> Version:
    """As `find_version`, of all versions of a workdir."""
    if not wanted:
        return versions[-1]
    for version in versions:
        if version.dataset == wanted:
            return version
    workdir = versions[0].workdir
    if len(versions) == 1 and not record_path(workdir, 1).exists() and not _planned(workdir):
        return dataclasses.replace(versions[0], dataset=wanted)
    there = ", ".join(version.dataset for version in versions)
    raise VersionError(
        f"gen.version: given {wanted!r}, but {workdir} has {there}. Name one of those, leave it empty for the"
        " newest, or start another one: python -m gen --new-version ..."
    )


def trained_version(workdir: str | os.PathLike | Location) -> Version:
    """The version that a workdir's run was trained on; the newest, if its `train/config.json` names none.

    Raises:
      VersionError: that file is damaged, or the workdir no longer has this version.
    """
    path, wanted = location(workdir) / "train" / "config.json", ""
    if path.is_file():
        remedy = "Restore it: the run's checkpoints say what must be in it."
        record = read_run(path, remedy, {"config": {"gen": dict}}, VersionError)
        wanted = str(record["config"]["gen"].get("version", ""))
    return find_version(workdir, wanted)


def dataset_name(config: Config) -> str:
    """The dataset that a config trains on: its own, or that without the pairs of low agreement where it makes one."""
    return config.name if config.gen.agreement.min_score <= -1 else config.name + FILTERED


def stage_folder(workdir: str | os.PathLike | Location, stage: str, version: str = "") -> Location:
    """The folder of a stage in a version.

    Args:
      version: of the dataset, `config.gen.version`; empty: the newest.

    Raises:
      VersionError: the workdir has no such version.
    """
    return find_version(workdir, version).stage_folder(stage)


def dataset_folder(workdir: str | os.PathLike | Location, name: str, version: str = "") -> Location:
    """The folder of a dataset in a version, `W/dataset/NAME/VERSION`.

    Args:
      version: as of `stage_folder`; one that is named is not looked for.

    Raises:
      VersionError: a file of the workdir gives a name that is none.
    """
    if not DATASET_NAME.fullmatch(name):
        raise VersionError(f"{workdir}: a dataset called {name!r}: allowed: lower-case letters, digits, underscores")
    return location(workdir) / "dataset" / name / (version or find_version(workdir).dataset)


def read_record(path: Location) -> Version:
    """The version that a record describes.

    Raises:
      VersionError: it is damaged, or would lead elsewhere than to folders of its own stages in the workdir.
    """
    remedy = (
        "It says which folders of gen/ belong to a version: restore it, or let `python -m gen.verify --repair` make it"
        " from the dataset's provenance.json"
    )
    shape = {"number": int, "dataset": str, "stages": dict}
    record = state_files.read(path, remedy, shape, sealed=True, error=VersionError)
    number, dataset, stages = record["number"], record["dataset"], record["stages"]
    problem = ""
    if f"{number:05d}.json" != path.name:
        problem = f"it is that of version {number}"
    elif not _NAME.fullmatch(dataset):
        problem = f"the dataset's version is {dataset!r}, allowed: MAJOR.MINOR.PATCH"
    for stage, name in stages.items():
        if not re.fullmatch(r"[a-z]+", stage) or not re.fullmatch(rf"{re.escape(stage)}(@\d{{1,9}})?", str(name)):
            problem = f"the folder of {stage!r} is {name!r}, allowed: {stage} or {stage}@NUMBER"
    if problem:
        raise VersionError(f"{path}: refused: {problem}. {remedy}")
    return Version(path.parents[2], number, dataset, dict(stages))


def check_inside(workdir: str | os.PathLike | Location, folders: Sequence[str]) -> None:
    """Checks that what is written lies in the workdir: no link in it leads elsewhere.

    Args:
      folders: relative to the workdir, such as `gen/captions`.

    Raises:
      VersionError: names the link.
    """
    base = location(workdir)
    if is_url(base) or not base.exists():
        return
    for folder in folders:
        place = base
        for part in folder.split("/"):
            place = place / part
            if place.is_symlink() and not is_inside(place, base):
                raise VersionError(
                    f"{place}: a link to {os.path.realpath(place)}, outside the workdir, where nothing is written."
                    " Mount that folder here (mount --bind), or name a --workdir that holds all of it"
                )


def _planned(workdir: str | os.PathLike | Location) -> str:
    """The version in the plan of the first images; empty if there is none."""
    path = location(workdir) / "gen" / "images" / PLAN
    try:
        version = state_files.read(path, "", {"version": str}, sealed=False)["version"]
    except (OSError, state_files.StateError):
        return ""
    return version if _NAME.fullmatch(version) else ""


def _first(workdir: str | os.PathLike | Location) -> str:
    """The first version's name: as planned; else, where only datasets were copied here, that of the newest."""
    if planned := _planned(workdir):
        return planned
    folders = [path for path in (location(workdir) / "dataset").glob("*/*") if _NAME.fullmatch(path.name)]
    return max((path.name for path in folders), key=lambda name: tuple(map(int, name.split("."))), default=FIRST)
