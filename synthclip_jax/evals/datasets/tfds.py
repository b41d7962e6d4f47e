"""Classification sets that TensorFlow Datasets has prepared on this machine, read without TensorFlow.

    tfds:oxford_iiit_pet          by name, in TFDS's own folder (TFDS_DATA_DIR, else ~/tensorflow_datasets)
    tfds:oxford_iiit_pet:3.2.0    one version of it
    tfds:data/food101/2.0.0       the folder of a prepared dataset, with its dataset_info.json; or the one above it
    tfds:food101@validation       a split; `test` unless given, or `validation` where there is no `test`

Class names are those of the label feature. Nothing is downloaded: `tfds build NAME` prepares a dataset.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from synthclip_jax.config import splits as split_names
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.data.readers.reader import Opening
from synthclip_jax.data.readers.tfds import open_tfds, prepared_folder
from synthclip_jax.data.records import RecordError
from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets.class_names import notes_on, own_class_names
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import CLASSIFICATION, Example, MissingDataset, locate, missing_folder
from synthclip_jax.evals.datasets.webdataset import check_label, own_templates
from synthclip_jax.files import state_files, text_files
from synthclip_jax.left_out import LeftOut

IMAGE, LABEL = "image", "label"  # features, as nearly all of TFDS's classification sets call them


class Prepared:
    """A split of a prepared dataset."""

    task = CLASSIFICATION
    class_counts = None

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = ".", allow_outside: bool = False):
        self.name, self.spec, self._parsed, self._workdir = spec.name, str(spec), spec, workdir
        self.left_out, self.notes = LeftOut("records"), list[str]()
        path = locate(spec.place, workdir)
        if path.is_absolute() and not path.is_dir():
            raise missing_folder(spec, path, workdir)
        place = str(_newest(path) or spec.place)
        try:
            self.folder = prepared_folder(SourceSpec("tfds", place, None, IMAGE, LABEL))
        except RecordError as error:
            raise MissingDataset(f"{spec.name}: {error}") from error
        self.split_name = self._split(spec.split)
        try:
            shards = SourceSpec("tfds", str(self.folder), None, IMAGE, LABEL)
            self._shards = open_tfds(shards, Opening(self.split_name))
        except RecordError as error:
            raise DatasetError(f"{spec.name}: {error}") from error
        self.class_names = self._class_names()
        self.class_ids = tuple(map(str, range(len(self.class_names))))
        self.templates = own_templates(self.folder)
        self.notes += notes_on(self.class_names)

    def __len__(self) -> int:
        return sum(map(len, self._shards.payloads))

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        return identify(self.folder, self.class_names, [shard.path for shard in self._shards.payloads])

    def split(self, name: str) -> "Prepared":
        """Another split. See `Dataset`."""
        return Prepared(self._parsed.of(name), self._workdir)

    def _split(self, wanted: str) -> str:
        """The split that is asked for, as the dataset calls it."""
        info: dict[str, Any] = state_files.read(
            self.folder / "dataset_info.json", "Prepare the dataset again: tfds build", sealed=False, error=DatasetError
        )
        entries = info.get("splits", [])
        if not isinstance(entries, list) or not all(isinstance(each, dict) and "name" in each for each in entries):
            raise DatasetError(
                f"{self.folder / 'dataset_info.json'}: its splits are no list of names. Prepare it again"
            )
        there = [str(each["name"]) for each in entries]
        if not there:
            return wanted or split_names.TEST
        held_out = [name for name in there if split_names.kind_of(name) not in ("", split_names.TRAIN)]
        found = split_names.find(wanted, there) if wanted else split_names.usual(held_out)
        if len(found) != 1:
            split = wanted or split_names.TEST
            raise MissingDataset(f"{self.name}: {self.folder} has no split {split!r}; it has {', '.join(there)}")
        if not wanted and split_names.kind_of(found[0]) != split_names.TEST:
            self.notes.append(f"split {found[0]} is taken, since there is no test split among {', '.join(there)}")
        return found[0]

    def _class_names(self) -> tuple[str, ...]:
        given = own_class_names(self.folder)
        if given is not None:
            return given
        path = self.folder / f"{LABEL}.labels.txt"
        names = text_files.read_lines(path) if path.exists() else []
        known = prompts.imagenet_class_names(names) if names else prompts.class_names_of(self.name)
        if known is not None:
            return known
        if len(names) < 2:
            raise DatasetError(
                f"{self.folder}: no {path.name} that names the classes, and no packaged class names for {self.name!r}."
                " Write a classnames.txt there, one class a line in label order"
            )
        return tuple(name.replace("_", " ") for name in names)

    def __iter__(self) -> Iterator[Example]:
        """Examples in the order of the shards.

        Raises:
          DatasetError: a record is damaged, or has no image or label, or a label without a class.
        """
        from synthclip_jax.data.example_proto import feature_values, parse_features
        from synthclip_jax.data.records import RecordError

        for shard in self._shards.payloads:
            for record in range(len(shard)):
                key = f"{pathlib.Path(shard.path).name}/{record}"
                try:
                    features = parse_features(shard[record])
                except RecordError as error:
                    raise DatasetError(f"{self.name}: {key}: {error}") from error
                image, label = (feature_values(features[name]) if name in features else [] for name in (IMAGE, LABEL))
                if not (image and isinstance(image[0], bytes) and label and isinstance(label[0], int)):
                    raise DatasetError(
                        f"{self.name}: {key}: no features {IMAGE!r} and {LABEL!r} with an image and a number;"
                        f" it has {', '.join(sorted(features))}"
                    )
                check_label(label[0], self.class_names, f"{self.folder}: {key}")
                yield Example(key, image[0], label[0])


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder itself, or the newest version below it (NAME/VERSION, NAME/CONFIG/VERSION); None if neither is one."""
    if (folder / "dataset_info.json").is_file():
        return folder
    found = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/dataset_info.json")]
    versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)
