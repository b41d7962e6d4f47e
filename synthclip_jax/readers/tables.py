"""CSV and Parquet tables with a column of picture files and a column of captions."""

import csv
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from synthclip_jax.left_out import LeftOut
from synthclip_jax.readers import Sample, Shard, keys_of, missing_key
from synthclip_jax.readers.captions import usable
from synthclip_jax.records import RecordError
from synthclip_jax.sources import SourceSpec


class TableReader:
    """One example per row. Relative paths are relative to the table's folder.

    A caption column of lists (Parquet) holds several captions for a picture. All paths and captions are kept in memory,
    packed: some 150 bytes a row.
    """

    def __init__(self, spec: SourceSpec, on_error: str = "raise"):
        """Reads the two columns.

        Raises:
          RecordError: no such table, or it cannot be read.
          MissingKey: it lacks a column; the text lists those it has.
        """
        self.place, self.left_out, self.faults = spec.place, LeftOut(), ()
        self.path = pathlib.Path(spec.place)
        self._lenient = on_error == "skip"
        images = keys_of(spec.image_key, "image", ("path", "filepath"))
        captions = keys_of(spec.caption_key, "caption", ("text", "title"))
        if not self.path.is_file():
            raise RecordError(f"{spec}: no such file. Name a .csv, .tsv or .parquet file")
        read = _read_parquet if self.path.suffix == ".parquet" else _read_csv
        paths, texts = read(self.path, images, captions)
        self._paths = _Texts(paths)
        self._captions = _Texts(text for row in texts for text in row)
        self._ends = np.cumsum([len(row) for row in texts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a row. See `Reader`."""
        path = self.path.parent / self._paths[index]
        try:
            image = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{self.where(index)}: {path}: {error.strerror}. Copy the picture there") from None
        first, last = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        texts = (self._captions[caption] for caption in range(first, last))
        return Sample(image, *usable(texts, self.where(index), self._lenient))

    def where(self, index: int) -> str:
        return f"{self.path}: row {index}"

    def shards(self) -> list[Shard]:
        return [Shard(str(self.path), range(len(self)))]

    def digest(self) -> str:
        digest = hashlib.sha256(self._ends.tobytes())
        for texts in (self._paths, self._captions):
            digest.update(texts.text)
        return digest.hexdigest()[:16]

    def content_digest(self) -> str:
        return self.digest()  # which is of all paths and captions


class _Texts:
    """Many short texts in one block of bytes: a fifth of the memory of as many `str`, and quick to pickle."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode("utf-8", errors="surrogateescape") for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self.text[start : int(self._ends[index])].decode("utf-8", errors="surrogateescape")


Columns = tuple[Sequence[str], Sequence[Sequence[str]]]


def _read_csv(path: pathlib.Path, images: Sequence[str], captions: Sequence[str]) -> Columns:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline()
        delimiter = "\t" if path.suffix == ".tsv" or head.count("\t") > head.count(",") else ","
        file.seek(0)
        rows = csv.reader(file, delimiter=delimiter)
        try:
            names = next(rows, [])
            image, caption = _column(path, names, images), _column(path, names, captions)
            paths, texts = [], []
            for row in rows:
                if not row:
                    continue
                if len(row) <= max(image, caption):
                    raise RecordError(
                        f"{path}: line {rows.line_num}: {len(row)} of {len(names)} columns. Mend the line"
                    )
                paths.append(row[image])
                texts.append((row[caption],))
        except csv.Error as error:
            raise RecordError(f"{path}: line {rows.line_num}: {error}. Mend the line") from None
    return paths, texts


def _read_parquet(path: pathlib.Path, images: Sequence[str], captions: Sequence[str]) -> Columns:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise RecordError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        names = pq.read_schema(path).names
        image, caption = names[_column(path, names, images)], names[_column(path, names, captions)]
        table = pq.read_table(path, columns=[image, caption])
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path}: not a Parquet file that can be read ({error}). Copy it again") from None
    paths, texts = table[image].to_pylist(), table[caption].to_pylist()
    for column, values, allowed in ((image, paths, str), (caption, texts, str | list | None)):
        wrong = next((row for row, value in enumerate(values) if not isinstance(value, allowed)), None)
        if wrong is not None:
            kind = type(values[wrong]).__name__
            raise RecordError(f"{path}: row {wrong}: column {column!r} holds {kind}, expected text. Set another column")
    return paths, [
        () if text is None else (text,) if isinstance(text, str) else tuple(filter(None, text)) for text in texts
    ]


def _column(path: str | os.PathLike, names: Sequence[str], wanted: Sequence[str]) -> int:
    for name in wanted:
        if name in names:
            return list(names).index(name)
    raise missing_key(str(path), wanted, names)
