"""What a kind of dataset has to offer, and what all readers do alike.

Every reader finds missing and cut-off files when it is opened, before any training, and names all of them at once.
Whatever it leaves out it counts by cause, with the first names (`left_out`).
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from synthclip_jax.data.records import RecordError
from synthclip_jax.errors import is_unreachable
from synthclip_jax.images.headers import IMAGE_EXTENSIONS
from synthclip_jax.left_out import LeftOut

# Opening a file on network storage is waiting, of which many can be done at once.
OPENING_THREADS = 16
# What `image` stands for: the extensions that people name images by, the usual ones first.
IMAGE_KEYS = tuple(dict.fromkeys(("jpg", "jpeg", "png", "webp", *IMAGE_EXTENSIONS)))


class Sample(NamedTuple):
    """One example as the files hold it."""

    image: bytes  # an encoded image
    captions: tuple[str, ...]  # at least one, each can be trained on
    left_out: tuple[str, ...] = ()  # the causes of those captions of the record that are not among them


class Opening(NamedTuple):
    """How a dataset is opened.

    Attributes:
      split: of datasets that have splits (`tfrecord`, `tfds`).
      check_crc: compare each record's checksum when it is read, where there are checksums.
      on_error: `skip` leaves out files that are missing or cut off, and examples that are incomplete.
      fresh: look for the offsets of records anew, whatever is kept of them.
      allow_outside: images that a table names may lie outside its folder.
      most_files: open so many of the files only, at even distances; 0: all.
    """

    split: str = "train"
    check_crc: bool = True
    on_error: str = "raise"
    fresh: bool = False
    allow_outside: bool = False
    most_files: int = 0


class MissingKey(RecordError):
    """A record lacks what the key map names; the text lists the keys that there are."""


class Shard(NamedTuple):
    """One file of a dataset, for those who go through all of it."""

    name: str
    examples: range  # of the reader's indexes


class Reader(Protocol):
    """What a kind of dataset has to offer. Any number of threads may read at once."""

    @property
    def place(self) -> str:
        """Where it lies, as the config has it."""

    @property
    def left_out(self) -> LeftOut:
        """What is left out, by cause: files that cannot be read, incomplete examples, files that are no example."""

    @property
    def faults(self) -> Sequence[str]:
        """Of what is left out that which is damage, a text for each file and cause: with `raise` it is an error."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample:
        """A sample.

        Raises:
          MissingKey: it has no such key.
          RecordError: it is damaged; the text names file and record.
        """

    def where(self, index: int) -> str:
        """How error texts name a sample."""

    def concept(self, index: int) -> str:
        """The concept that a generated caption was asked for; empty where the files name none."""

    def shards(self) -> Sequence[Shard]:
        """The files, in the order of their samples."""

    def digest(self) -> str:
        """Short hash that tells one dataset from another, cheaply: of names and sizes, not of all bytes."""

    def content_digest(self) -> str:
        """The same of more: of sizes, of the heads and tails of all files, and of where their records lie."""


Opened = TypeVar("Opened")


def open_files(
    place: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    open_file: Callable[[str | os.PathLike], Opened],
    missing: Iterable[str],
    how: Opening,
    left_out: LeftOut,
) -> tuple[list[Opened], list[str]]:
    """Opens the files of a dataset at once, all or as many as `how` says.

    Args:
      missing: a text for each file that is known to be missing.
      left_out: where to note those that are gone without.

    Returns:
      The files that could be opened, in order, and a text for each of the others (`on_error="skip"`).

    Raises:
      RecordError: names every file that is missing or cannot be opened (`on_error="raise"`), or none can.
    """

    def attempt(path: str | os.PathLike) -> Opened | RecordError:
        try:
            return open_file(path)
        except RecordError as error:
            return error
        except Exception as error:
            if not (isinstance(error, OSError) or is_unreachable(error)):
                raise
            reason = getattr(error, "strerror", None) or error
            return RecordError(f"{path}: {reason}. Check that it can be read, or copy it again")

    if how.most_files:
        paths = paths[:: -(-len(paths) // how.most_files) or 1]
    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        results = list(pool.map(attempt, paths))
    missing = list(missing)
    damaged = [str(result) for result in results if isinstance(result, RecordError)]
    problems = [*missing, *damaged]
    opened = [result for result in results if not isinstance(result, RecordError)]
    if problems and (how.on_error == "raise" or not opened):
        raise RecordError(damage_report(place, problems, f"of {len(opened) + len(problems)} files"))
    for cause, texts in (("missing", missing), ("damaged", damaged)):
        for text in texts:
            left_out.add(f"{cause} file", text, unit="files")
    return opened, problems


def damage_report(place: str | os.PathLike, problems: Sequence[str], of: str) -> str:
    """The text of an error about one or several damaged files or records, every one of them named."""
    hint = "To go on without what is damaged, set config.data.on_error=skip"
    if len(problems) == 1:
        return f"{problems[0].removesuffix('.')}. {hint}"
    return f"{place}: {len(problems)} {of} cannot be read:\n  " + "\n  ".join(problems) + f"\n{hint}"


def keys_of(key: str, standard: str, others: Sequence[str]) -> tuple[str, ...]:
    """The keys that a key of the config stands for, in order: 'jpg;png' for two, the standard one for others too."""
    keys = [part.strip() for part in key.split(";") if part.strip()]
    return tuple(name for part in keys for name in ((part, *others) if part == standard else (part,)))


def missing_key(where: str, wanted: Sequence[str], there: Iterable[str], what: str = "caption") -> MissingKey:
    """The error about a record that has none of the wanted keys; `what`: they are of its `image` or its `caption`."""
    error = MissingKey(
        f"{where}: no {' or '.join(map(repr, wanted))} in it; it has {', '.join(sorted(there)) or 'nothing'}. Set"
        " config.data.image_key and config.data.caption_key, or the keys of this entry of config.data.sources"
    )
    error.cause = f"no {what}"
    return error
