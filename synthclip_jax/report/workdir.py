"""What a workdir holds, as far as it is there: every part is read on demand and may be missing.

Only files are read, in the layout that generation, training and evaluation document; nothing that computes is loaded.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from synthclip_jax.config import load_saved
from synthclip_jax.config.sources import SourceSpec, training_sources
from synthclip_jax.errors import UserError
from synthclip_jax.evals import origin, results
from synthclip_jax.evals.datasets import Dataset, DatasetSpec, Example, open_dataset
from synthclip_jax.evals.datasets.spec import locate
from synthclip_jax.files import state_files
from synthclip_jax.files.folders import is_inside
from synthclip_jax.report.examples import Drawn, Images
from synthclip_jax.report.missing import Missing, optional, outside
from synthclip_jax.training.metrics import read_metrics
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.run_record import read_run
from synthclip_jax.workdir.versions import Version, dataset_folder, find_version, trained_version

SHEET, STRIP = 48, 26  # pictures on the contact sheet, and in the strip at the top


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of generation, summed up from its commit records.

    Attributes:
      plan: its plan.
      done, shards: how many shards are finished, and how many there are to be (None if not known).
      count: items accepted.
      rejects: items rejected, by reason.
      answers: of captions, all answers of the language model by `accepted` and reasons, repeated questions included.
      seconds: time spent by all workers together.
    """

    plan: Mapping[str, Any]
    done: int
    count: int
    rejects: Mapping[str, int]
    answers: Mapping[str, int]
    seconds: float
    shards: int | None

    @property
    def unfinished(self) -> str:
        """How far a stage is that is not at its end; empty for one that is."""
        return f"{self.done:,} of {self.shards:,} shards so far" if self.shards and self.done < self.shards else ""


class Run:
    """The files of a workdir."""

    def __init__(self, workdir: str | os.PathLike, allow_outside: bool = False, version: str = ""):
        """Opens a workdir.

        Args:
          allow_outside: pictures of datasets and test sets that lie outside the workdir may be shown.
          version: of the dataset, to describe another one than training used.

        Raises:
          VersionError: the workdir has no such version.
        """
        self.folder, self.allow_outside = pathlib.Path(workdir), allow_outside
        self._wanted = find_version(self.folder, version) if version else None

    # ---- generation -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def bank(self) -> dict[str, Any]:
        """Summary of the concept bank."""
        path = self._gen("concepts", generated.BANK_RECORD, "There is no concept bank in this workdir.")
        return generated.read_bank_record(path, more={"count": int, "sources": dict})

    def bank_concepts(self) -> Iterator[dict[str, Any]]:
        """The concepts in the order of their ids."""
        return generated.read_bank(self._gen("concepts", generated.BANK))

    def commits(self, stage: str) -> list[dict[str, Any]]:
        """The commit records of a stage."""
        folder = self._version.stage_folder(stage) / generated.COMMITS
        return [generated.read_commit(self.own(path)) for path in sorted(folder.glob("[0-9]*.json"))]

    def match_files(self) -> list[pathlib.Path]:
        """Files that say which concepts were found in each caption; none before balancing."""
        return self._tables("balance", generated.MATCHES)

    def stage(self, name: str) -> Stage:
        """A stage that commits shards.

        Raises:
          Missing: it has not begun.
        """
        plan = self._plan(name, {}, f"The {name} stage has not been run in this workdir.")
        records = self.commits(name)
        if not records:
            raise Missing(f"The {name} stage has been planned, and no shard of it is finished yet.")
        rejects: collections.Counter[str] = collections.Counter()
        answers: collections.Counter[str] = collections.Counter()
        for record in records:
            rejects.update(record["rejects"])
            answers.update(record.get("answers", {}))
        shards = plan.get("shards")
        return Stage(
            plan,
            len(records),
            sum(record["count"] for record in records),
            dict(rejects.most_common()),
            dict(answers.most_common()),
            sum(record.get("seconds", 0.0) for record in records),
            shards if isinstance(shards, int) else None,
        )

    @functools.cached_property
    def balance(self) -> dict[str, Any]:
        """The result of balancing."""
        return generated.read_balance(
            self._gen("balance", generated.BALANCE, "The captions have not been balanced yet.")
        )

    def concept_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """In how many captions each concept is, before and after balancing."""
        _ = self.balance  # the counts are whole once it is there
        before, after = (self._gen("balance", name) for name in (generated.COUNTS_BEFORE, generated.COUNTS_AFTER))
        return generated.read_counts(before), generated.read_counts(after)

    # ---- the dataset ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def dataset_folder(self) -> pathlib.Path:
        """The dataset made in this workdir: the version that training used, else the newest."""
        folders = [path.parent for path in (self.folder / "dataset").glob("*/*/*.tfrecord-00000-of-*")]
        if not folders:
            raise Missing("There are no pictures in this workdir yet.")
        complete = {path: (path / generated.PROVENANCE).exists() for path in folders}
        ranked = ((path.name == self._version.dataset, complete[path], path.stat().st_mtime, path) for path in folders)
        return self.own(max(ranked)[-1])

    @property
    def pictures_folder(self) -> pathlib.Path:
        """The dataset as its pictures were drawn, also where training uses a filtered one."""
        plan = self._plan("images", {"dataset": str, "version": str}, "There are no pictures in this workdir yet.")
        return self.own(dataset_folder(self.folder, plan["dataset"], plan["version"]))

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """How the dataset was made."""
        path = self.dataset_folder / generated.PROVENANCE
        return generated.read_provenance(self._there(path, "The dataset is not finalized yet (no provenance.json)."))

    @functools.cached_property
    def measured(self) -> dict[str, Any]:
        """What an audit has measured of this version's images beside real ones.

        Raises:
          Missing: nothing, or of another version.
        """
        how = "python -m gen.audit --workdir=W --reference=FOLDER measures it."
        found = generated.read_measured(self._there(self.folder / generated.MEASURED, f"Not measured yet: {how}"))
        if found["made_from"].get("version") != self.pictures_folder.name:
            raise Missing(f"What is measured is of another version: {how}")
        return found

    def images_of(self, folder: pathlib.Path) -> Images:
        """The examples of a dataset made in this workdir; of one that is not finished, what is there."""
        return Images([SourceSpec("tfrecord", str(folder), None, "image", "caption")], self.folder)

    @functools.cached_property
    def sample(self) -> Drawn:
        """What training reads, wherever that is from; before training, what was generated. See `SHEET` and `STRIP`."""
        trained = optional(lambda: self.training)
        data = trained["config"].get("data", {}) if trained else {}
        if not (data.get("path") or data.get("sources")):
            return self.images_of(self.dataset_folder).draw(SHEET + STRIP)
        data = load_saved(trained["config"]).data
        images = Images(training_sources(data, ""), self.folder, self.allow_outside, data.split, data.check_crc)
        return images.draw(SHEET + STRIP)

    def credits(self) -> list[tuple[str, str]]:
        """(what, whose) for pictures that the page shows, from the cards of the dataset and the test sets."""
        lines = []
        with contextlib.suppress(UserError, OSError):
            lines += generated.read_credits(self.own(self.dataset_folder / generated.CARD))
        for path in sorted((self.folder / "testsets").glob("*/README.md")):
            last = self.own(path).read_text(encoding="utf-8").strip().splitlines()[-1]
            lines.append((f"test set {path.parent.name}", last))
        return lines

    # ---- training and evaluation ----------------------------------------------------------------------------------

    @functools.cached_property
    def training(self) -> dict[str, Any]:
        """What was trained: config, dataset, versions."""
        path = self._there(self.folder / "train" / "config.json", "Training has not begun in this workdir.")
        return read_run(path, "Restore it, or start training again, which makes it anew.", {"config": dict})

    @functools.cached_property
    def metrics(self) -> list[dict[str, float]]:
        """Logged steps, those with a loss."""
        path = self.folder / "train" / "metrics.jsonl"
        lines = [line for line in read_metrics(self.own(path)) if "loss" in line]
        if not lines:
            raise Missing("No training step has been logged in this workdir yet.")
        return lines

    @functools.cached_property
    def zeroshot(self) -> list[dict[str, Any]]:
        """Results of zero-shot evaluations, by step; those that can be read."""
        problems: list[str] = []
        found = results.read_results(self.folder, "zeroshot", problems)
        if not found:
            raise Missing("; ".join(problems) or "No checkpoint has been evaluated in this workdir yet.")
        return found

    def result_notes(self, suite: str, step: int | None = None) -> list[str]:
        """What is to be said beside the numbers of a suite: files that cannot be read, and of which numbers it is not
        known that they are of the weights that are saved. `step`: of this one alone."""
        notes: list[str] = []
        for result in results.read_results(self.folder, suite, notes):
            if step not in (None, result["step"]):
                continue
            names: dict[str, list[str]] = {}
            for name in results.group(result["metrics"], suite):
                if note := origin.weights_note(self.folder, result, name):
                    names.setdefault(note, []).append(name)
            notes += [f"Step {result['step']:,}, {', '.join(them)}: {note}." for note, them in names.items()]
        return notes

    def detail(self, result: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
        """Predictions for each picture of a test set."""
        self.own(self.folder / "eval")
        arrays = results.read_detail(self.folder, result, name)
        if arrays is None:
            raise Missing(f"The single predictions for {name} are not there.")
        return arrays

    def test_pictures(self, result: Mapping[str, Any], name: str, keys: set[str]) -> dict[str, bytes]:
        """Pictures of a test set by their keys; none if the test set is gone.

        Raises:
          Missing: the test set lies outside this workdir, and that is not allowed: a workdir from somebody else could
            name any folder of this machine.
        """
        spec = DatasetSpec.parse(result["datasets"][name]["spec"])
        if not self.allow_outside:
            place = locate(spec.place, self.folder)
            if spec.kind == "tfds" or (place.exists() and not is_inside(place, self.folder)):
                raise outside(name, f"{spec.kind}:{spec.place}")
        dataset: Dataset = open_dataset(str(spec), self.folder)
        found: dict[str, bytes] = {}
        examples: Iterator[Example] = iter(dataset)
        while len(found) < len(keys):
            example = next(examples, None)
            if example is None:
                break
            if example.key in keys:
                found[example.key] = example.image
        return found

    # ---- reading --------------------------------------------------------------------------------------------------

    def _gen(self, stage: str, name: str, otherwise: str = "") -> pathlib.Path:
        """A file of a stage, see `_there`."""
        return self._there(self._version.stage_folder(stage) / name, otherwise)

    def _plan(self, stage: str, shape: Mapping[str, Any], otherwise: str) -> dict[str, Any]:
        remedy = "Restore it, or make it again."
        return state_files.read(self._gen(stage, generated.PLAN, otherwise), remedy, shape)

    @functools.cached_property
    def _version(self) -> Version:
        """The version that the page is about: the one that was trained on, else the newest."""
        return self._wanted or optional(trained_version, self.folder) or find_version(self.folder)

    def own(self, path: Any) -> pathlib.Path:
        """The path, if it lies in this workdir with all links followed.

        Raises:
          Missing: it does not: a workdir from somebody else could show any file of this machine.
        """
        if not is_inside(path, self.folder):
            raise Missing(f"{path} leads out of this workdir and is not read.")
        return pathlib.Path(str(path))

    def _there(self, path: Any, otherwise: str) -> pathlib.Path:
        """The path, if something is there, in this workdir; `otherwise`: the sentence if there is nothing."""
        if otherwise and not path.exists():
            raise Missing(otherwise)
        return self.own(path)

    def _tables(self, stage: str, kind: str) -> list[pathlib.Path]:
        return [self.own(path) for path in generated.list_tables(self._version.stage_folder(stage), kind)]

    def caption_files(
        self, kind: str = generated.CAPTIONS, otherwise: str = "There are no captions in this workdir."
    ) -> list[pathlib.Path]:
        """Tables of the captions stage.

        Raises:
          Missing: there are none, or pyarrow is not installed.
        """
        paths = self._tables("captions", kind)
        if not paths:
            raise Missing(otherwise)
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise Missing("Reading captions needs pyarrow: pip install 'synthclip_jax[report]'.") from error
        return paths
