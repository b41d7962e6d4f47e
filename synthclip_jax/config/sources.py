"""Which datasets a config trains on: entries of `config.data.sources`, each KIND:PLACE with a weight and a key map.

    "wds:/data/cc3m"
    ("tfrecord:/data/synth/1.0.0", 0.7)
    ("table:/data/coco.csv", 0.3, "path", "title")
    ("wds:/data/cc12m", None, None, None, 500_000)

KIND is one of

    tfrecord     folder of tf.train.Example shards named as TFDS names them, which is what generation writes
    img2dataset  folder of 00000.tfrecord, 00001.tfrecord, ... (img2dataset's output format `tfrecord`)
    wds          webdataset tars, also .tar.gz: a folder, one .tar, or a pattern such as /data/cc3m/{00000..00331}.tar,
                 *, {a,b}, several of them separated by ::, on a disk or in a bucket (`readers.patterns`)
    tfds         a name of TensorFlow Datasets, already prepared on this machine (`tfds build NAME`), or its folder
    table        CSV or Parquet file with a column of image files and one of captions
    parquet      Parquet files with the images inside, as the hub has them: a folder, a file, or a pattern as of wds
    arrow        what `datasets` has saved: the folder of Dataset.save_to_disk (`readers.embedded`)

A key may name several, the first that is there counts: 'jpg;png'. The default `image` also finds jpg, jpeg, png,
webp and the other usual extensions (in a table path and filepath), the default `caption` also finds txt and
json.caption (in a table text and title). In `parquet` and `arrow`, COLUMN.FIELD is a field of a column.
The last item is the part of the dataset to take: a share up to 1, or a number of examples; see `data.part`.
"""

import dataclasses
import math
import os
from typing import Any

from synthclip_jax.config.registry import SOURCES
from synthclip_jax.config.schema import Data

# What people write instead.
_MEANT = {
    **dict.fromkeys(("webdataset", "tar", "tars", "wds"), "tars are wds:PLACE"),
    **dict.fromkeys(("csv", "tsv", "table"), "tables are table:FILE"),
    **dict.fromkeys(("hf", "hub", "datasets"), "Parquet of the hub is parquet:PLACE, a saved dataset arrow:FOLDER"),
    **dict.fromkeys(("tfrecords", "tfrecord"), "TFRecords are tfrecord:FOLDER"),
    **dict.fromkeys(("s3", "gs"), "tars in a bucket are wds:s3://BUCKET/PLACE, other things likewise"),
    **dict.fromkeys(("pipe", "http", "https"), "tars are copied to a disk or a bucket first, and are then wds:PLACE"),
}


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """One dataset to train on. `weight` is its share of the mix, relative to the others'; None: as many as it has.

    `part` is how much of it is used at all: a share up to 1, or a number of examples above 1.
    """

    kind: str
    place: str
    weight: float | None
    image_key: str
    caption_key: str
    part: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "place", os.path.expanduser(self.place))

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


def training_sources(data: Data, folder: str | os.PathLike) -> tuple[SourceSpec, ...]:
    """What a run trains on: the sources of `config.data`, or one folder, `data.path`; `folder` where that is empty."""
    plain = SourceSpec("tfrecord", str(data.path or folder), None, data.image_key, data.caption_key, data.part)
    return parse_sources(data) or (plain,)


def parse_sources(data: Data) -> tuple[SourceSpec, ...]:
    """The sources of `config.data`, entries without keys taking `data.image_key` and `data.caption_key`.

    Raises:
      ValueError: an entry has another form, or some have weights and others not; the text says what is allowed.
    """
    specs = tuple(_parse(entry, data) for entry in data.sources)
    if len({spec.weight is None for spec in specs}) > 1:
        without = ", ".join(str(spec) for spec in specs if spec.weight is None)
        raise ValueError(f"given no weight for {without}, allowed: a weight for each source, or for none")
    return specs


def _parse(entry: Any, data: Data) -> SourceSpec:
    items = (entry,) if isinstance(entry, str) else tuple(entry) if isinstance(entry, tuple | list) else ()
    if not 1 <= len(items) <= 5 or not isinstance(items[0], str):
        raise ValueError(
            f"given {entry!r}, allowed: 'KIND:PLACE' or ('KIND:PLACE', weight, image_key, caption_key, part)"
        )
    kind, _, place = items[0].partition(":")
    if kind not in SOURCES and (meant := _MEANT.get(kind.lower())):
        raise ValueError(f"given {items[0]!r}, allowed: 'KIND:PLACE' with KIND one of {', '.join(SOURCES)}; {meant}")
    if "\0" in place:
        raise ValueError(f"given {items[0]!r}, allowed: a place without a NUL in its name")
    if kind not in SOURCES or not place:
        raise ValueError(f"given {items[0]!r}, allowed: 'KIND:PLACE' with KIND one of {', '.join(SOURCES)}")
    weight, image_key, caption_key, part = (list(items[1:]) + [None] * 4)[:4]
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf
    ):
        raise ValueError(f"given weight {weight!r} for {items[0]}, allowed: a number above 0, or None")
    for key in (image_key, caption_key):
        if key is not None and not (isinstance(key, str) and key):
            raise ValueError(f"given key {key!r} for {items[0]}, allowed: a text, or None")
    if part is not None and (isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part < math.inf):
        raise ValueError(f"given part {part!r} for {items[0]}, allowed: a share up to 1, or a number of examples")
    part = data.part if part is None else part
    return SourceSpec(
        kind, os.path.expanduser(place), weight, image_key or data.image_key, caption_key or data.caption_key, part
    )
