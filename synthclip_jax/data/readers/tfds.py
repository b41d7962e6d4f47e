"""Datasets that TensorFlow Datasets has prepared on this machine, read without TensorFlow.

TFDS keeps serialised Examples whose features are called by their path, such as `captions/text`; images are in them
as they were encoded. So our own reader of Examples serves, and TFDS only says where the files are.
"""

import dataclasses
import pathlib

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers.examples import ExampleReader, open_tfrecords
from synthclip_jax.data.readers.reader import Opening
from synthclip_jax.data.records import RecordError
from synthclip_jax.files import state_files


def open_tfds(spec: SourceSpec, how: Opening) -> ExampleReader:
    """A TFDS name, such as `coco_captions` or `ai2dcaption/auto_filter:1.0.0`, or the folder of a prepared dataset.

    Raises:
      RecordError: TFDS is not installed, knows no such dataset, or has not prepared it here.
    """
    folder = prepared_folder(spec)
    info = state_files.read(folder / "dataset_info.json", "Prepare it again", sealed=False, error=RecordError)
    splits = {entry["name"] for entry in info.get("splits") or () if isinstance(entry, dict) and "name" in entry}
    if splits and how.split not in splits:
        raise RecordError(f"{spec}: no split {how.split!r}; it has {', '.join(sorted(splits))}. Set config.data.split")
    return open_tfrecords(dataclasses.replace(spec, place=str(folder)), how)


def prepared_folder(spec: SourceSpec) -> pathlib.Path:
    """Where the files of a dataset lie that is named as for `open_tfds`, whose errors it raises."""
    if (pathlib.Path(spec.place) / "dataset_info.json").is_file():
        return pathlib.Path(spec.place)
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise RecordError(
            f"{spec}: finding a dataset by its name needs TFDS: pip install tensorflow-datasets. Or name the folder"
            " that holds its dataset_info.json"
        ) from None
    try:
        builder = tfds.builder(spec.place)
    except Exception as error:  # TFDS raises many kinds, some of which say how to mend it
        raise RecordError(f"{spec}: TFDS cannot open it ({error})") from error
    if not builder.is_prepared():
        raise RecordError(f"{spec}: not prepared on this machine. Run: tfds build {spec.place}")
    return pathlib.Path(builder.data_dir)
