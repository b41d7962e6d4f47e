"""The paper's datasets, as data: which suites use each, with which metric and prompts, where it may lie, how to get it.

`evaluate --suite=paper --data=FOLDER` runs what is there. Needs no JAX.
"""

import dataclasses
import functools
import importlib.resources
import json
import pathlib
from collections.abc import Mapping

from synthclip_jax.evals.datasets import Dataset, MissingDataset, open_dataset


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dataset.

    Attributes:
      table: of the paper, where its numbers are.
      suites: which suites it is in, and the metrics that the paper reports.
      images: how many the split has that is evaluated.
      templates: prompt set; empty: its own.
      places: specs without a name, relative to the data folder; the first that exists counts.
      get: command that fetches it into the data folder, `{data}`.
    """

    name: str
    table: str
    suites: Mapping[str, str]
    images: int
    split: str
    templates: str
    places: tuple[str, ...]
    get: str

    def command(self, data: str | pathlib.Path) -> str:
        """The command that fetches it."""
        return self.get.replace("{data}", str(data))


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All of the paper's datasets, in its order."""
    text = importlib.resources.files("synthclip_jax.evals").joinpath("catalogue.json").read_text(encoding="utf-8")
    return tuple(Entry(**{**each, "places": tuple(each["places"])}) for each in json.loads(text)["datasets"])


def find(entry: Entry, data: str | pathlib.Path, allow_outside: bool = False) -> Dataset:
    """Opens a dataset of the catalogue where it lies; `allow_outside` as in `open_dataset`.

    Raises:
      MissingDataset: it is in none of its places; the text is the command that fetches it.
      DatasetError: it is there and cannot be used.
    """
    for place in entry.places:
        kind, _, where = place.replace("{data}", str(data)).partition(":")
        spec = f"{entry.name}={kind}:{pathlib.Path(data) / where}"
        try:
            return open_dataset(spec, allow_outside=allow_outside)
        except MissingDataset:
            continue
    raise MissingDataset(f"{entry.name}: not in {data}. Get it: {entry.command(data)}")
