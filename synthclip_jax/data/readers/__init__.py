"""Random access to images and captions as they lie in files of several kinds, without a copy and without decoding."""

import pkgutil

from synthclip_jax.config.registry import SOURCES
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers.reader import MissingKey, Opening, Reader
from synthclip_jax.data.records import RecordError
from synthclip_jax.left_out import printable

# Records that are looked at when a dataset is opened: if none of them has the keys, the keys are wrong.
PROBED = 32


def open_reader(
    spec: SourceSpec,
    split: str = "train",
    check_crc: bool = True,
    on_error: str = "raise",
    fresh: bool = False,
    allow_outside: bool = False,
    most_files: int = 0,
) -> Reader:
    """Opens a dataset; every file's size is compared with its index here. How: see `Opening`.

    Raises:
      RecordError: nothing is there, or (`on_error="raise"`) files are missing or cut off, or examples incomplete; all
        files are named.
      MissingKey: no sample has what the key map names; with `raise`, the first one has not.
    """
    if "\0" in spec.place:
        raise RecordError(f"{spec.kind}:{printable(spec.place)}: a NUL in the name of a place. Name another one")
    how = Opening(split, check_crc, on_error, fresh, allow_outside, most_files)
    reader: Reader = pkgutil.resolve_name(SOURCES[spec.kind])(spec, how)
    if not len(reader):
        why = "".join(f"\n  {line}" for line in reader.left_out.lines())
        raise RecordError(f"{spec}: it holds no example. Generate or copy it again{why}")
    _probe(reader, on_error)
    return reader


def _probe(reader: Reader, on_error: str) -> None:
    """Finds wrong keys: with `raise` those of the first record, with `skip` those that none of several records has."""
    first: MissingKey | None = None
    for index in range(0, len(reader), -(-len(reader) // PROBED)):
        try:
            reader[index]
            break
        except MissingKey as error:
            first = first or error
        except RecordError:
            if first is None:
                return  # damage is dealt with when the record's turn comes
    else:
        if first:
            raise first
    if first and on_error == "raise":
        raise MissingKey(f"{first}. Others have it: to go on without this one, set config.data.on_error=skip")
