"""The splits of a test set that a classifier learns from, and chooses by. Needs no JAX."""

import weakref

from synthclip_jax.evals.datasets.spec import Dataset, MissingDataset

# lgssl takes a fifth of the train split for validation even where some publisher of these datasets has a split for it.
CUT_FROM_TRAIN = ("food101", "cifar10", "cifar100", "sun397", "pets", "caltech101")
VALIDATION_NAMES = ("validation", "val")


def open_splits(dataset: Dataset) -> tuple[Dataset | None, Dataset | None]:
    """The train split, and the validation split where it is a third one and the paper's evaluator uses it.

    Neither is ever the split that is tested on, whatever that is called.
    """
    if dataset not in _splits:
        _splits[dataset] = _open_splits(dataset)
    return _splits[dataset]


# Opening a split looks at all of its files; it is asked for several times.
_splits: weakref.WeakKeyDictionary[Dataset, tuple[Dataset | None, Dataset | None]] = weakref.WeakKeyDictionary()


def _open_splits(dataset: Dataset) -> tuple[Dataset | None, Dataset | None]:
    train = _another_split(dataset, "train")
    if train is None or dataset.name in CUT_FROM_TRAIN:
        return train, None
    found = (_another_split(dataset, name) for name in VALIDATION_NAMES)
    return train, next((validation for validation in found if validation is not None), None)


def _another_split(dataset: Dataset, name: str) -> Dataset | None:
    try:
        split = dataset.split(name)
    except MissingDataset:
        return None
    return None if split.split_name == dataset.split_name else split


def describe_splits(dataset: Dataset) -> dict[str, str]:
    """Where the images to learn from come from, in words for the result file."""
    train, validation = open_splits(dataset)
    if train is None:
        return {"train": "two thirds of the test split, by class", "validation": "a fifth of those"}
    return {"train": train.spec, "validation": validation.spec if validation else "a fifth of the train split"}


def split_identities(dataset: Dataset) -> dict[str, dict[str, str]]:
    """What each split was made from that a classifier of features sees; see `Dataset.identity`."""
    train, validation = open_splits(dataset)
    splits = {"test": dataset, "train": train, "validation": validation}
    return {name: split.identity() for name, split in splits.items() if split is not None}
