"""Test sets, by a spec `[NAME=]KIND:PLACE[@SPLIT]`. Needs no JAX.

    wds:FOLDER                webdataset folder in CLIP_benchmark's layout, for any task
    folder:FOLDER             one folder of images per class; with splits: FOLDER/test/CLASS/...
    tfds:NAME[:VERSION]       prepared by TensorFlow Datasets on this machine, or the folder of such a dataset
    karpathy:FILE.json[:IMAGES]   COCO's or Flickr's captions in Karpathy's splits, and where their images lie
    choice:FILE.json[:IMAGES]     a right and a wrong caption for each image: SugarCrepe's files, ARO's, Winoground's

NAME, by which its results are called, defaults to the folder's or the dataset's; SPLIT to the test split.
Class names and templates that a dataset does not bring come from `synthclip_jax.evals.prompts` if its name is known
there.

All kinds stream: memory does not grow with the number of images.
"""

import collections
import os
import pkgutil
from collections.abc import Sequence

from synthclip_jax.config.registry import TEST_SETS
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.evals.datasets.spec import (
    CHOICE,
    CLASSIFICATION,
    RETRIEVAL,
    Captioned,
    Dataset,
    Example,
    MissingDataset,
)

__all__ = [
    "CHOICE",
    "CLASSIFICATION",
    "RETRIEVAL",
    "Captioned",
    "Dataset",
    "DatasetError",
    "DatasetSpec",
    "Example",
    "MissingDataset",
    "open_dataset",
    "open_datasets",
]


def open_dataset(spec: str | DatasetSpec, workdir: str | os.PathLike = ".", allow_outside: bool = False) -> Dataset:
    """Opens a test set and reads its class names and templates, no images yet.

    Args:
      spec: see the module's docstring.
      workdir: what a relative place is relative to, unless it exists as given.
      allow_outside: take files that lie outside of the test set's folder, by links or by paths that lead there.

    Raises:
      MissingDataset: the place does not exist, or has no such split.
      DatasetError: the spec or what lies there is not of the form described above.
    """
    spec = DatasetSpec.parse(spec) if isinstance(spec, str) else spec
    return pkgutil.resolve_name(TEST_SETS[spec.kind])(spec, workdir, allow_outside)


def open_datasets(
    specs: Sequence[str | DatasetSpec | Dataset],
    workdir: str | os.PathLike,
    lenient: bool,
    allow_outside: bool = False,
) -> tuple[list[Dataset], list[str]]:
    """Opens several test sets (an opened one stays as it is).

    Args:
      lenient: leave out those that do not exist, and say so, instead of raising.
      allow_outside: see `open_dataset`.

    Returns:
      The test sets, and a line for each that is left out.

    Raises:
      DatasetError: one is not usable, two have the same name, or there is none.
    """
    datasets: list[Dataset] = []
    missing: list[str] = []
    for spec in specs:
        try:
            given = isinstance(spec, str | DatasetSpec)
            datasets.append(open_dataset(spec, workdir, allow_outside) if given else spec)  # type: ignore[arg-type]
        except MissingDataset as error:
            if not lenient:
                raise
            missing.append(f"{error}: left out")
    for name, count in collections.Counter(dataset.name for dataset in datasets).items():
        if count > 1:
            raise DatasetError(f"{count} test sets are called {name!r}; rename one: NAME=wds:FOLDER")
    if not datasets:
        why = "; ".join(missing) or "config.eval.datasets is empty"
        raise MissingDataset(f"no test set to evaluate on ({why}). Pass --dataset=wds:FOLDER or folder:FOLDER")
    return datasets, missing
