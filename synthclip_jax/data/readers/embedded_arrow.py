"""Arrow files as `datasets` saves them to disk: their rows, and where in the file the images lie.

Arrow's format is that of its memory: the file is mapped, and the address of a value says where it lies.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from synthclip_jax.data.readers.embedded_columns import Columns, find_columns, no_image, part
from synthclip_jax.data.readers.image_index import Found
from synthclip_jax.data.readers.parquet_files import text_values
from synthclip_jax.data.records import RecordError

FILE_MAGIC = b"ARROW1"  # of files with a table of their batches; streams have none
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream


class ArrowRows:
    """The images and captions of one file."""

    def __init__(self, path: pathlib.Path, images: Sequence[str], captions: Sequence[str]):
        """Finds the columns. Raises what pyarrow raises, or RecordError, MissingKey."""
        self.path = path
        with self._mapped() as memory:
            schema = _reader(memory).schema
            self.columns: Columns = find_columns(str(path), schema, images, captions)
            self.rows = sum(batch.num_rows for batch in _batches(memory, self.columns.caption[:1]))

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as file:
            memory = file.read_buffer()
            head, tail = memory[:6].to_pybytes(), memory[-len(END) :].to_pybytes() if memory.size >= len(END) else b""
            if head != FILE_MAGIC and tail != END:
                raise RecordError(f"{self.path}: the file ends without Arrow's end mark. It was cut off: copy it again")
            yield memory

    def captions(self) -> Iterator[Sequence[Any]]:
        """The values of the caption column, row by row."""
        with self._mapped() as memory:
            for batch in _batches(memory, self.columns.caption[:1]):
                for texts in text_values(part(batch, self.columns.caption)):
                    yield texts if isinstance(texts, list | tuple) else (texts,)

    def images(self, locate: bool) -> Iterator[Found | int]:
        """The images; with `locate`, where they lie in the file."""
        with self._mapped() as memory:
            for batch in _batches(memory, self.columns.image[:1]):
                array = part(batch, self.columns.image)
                places = _places(array, memory) if locate else np.full(len(array), -1)
                for row, at in enumerate(places.tolist()):
                    value = array[row]
                    if value.is_valid:
                        yield Found(value.as_py(), at)
                    else:
                        yield no_image(batch, self.columns, row)


def _reader(memory: Any, fields: Sequence[int] = ()) -> Any:
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=list(fields), use_threads=False)
    open_it = pa.ipc.open_file if memory[:6].to_pybytes() == FILE_MAGIC else pa.ipc.open_stream
    return open_it(pa.BufferReader(memory), options=options)


def _batches(memory: Any, names: Sequence[str]) -> Iterator[Any]:
    """The record batches with these columns alone; what they claim of their values is checked."""
    if memory[:6].to_pybytes() == FILE_MAGIC:
        reader = _reader(memory)  # of one whose columns are chosen, Arrow copies them
        batches = (reader.get_batch(number).select(list(names)) for number in range(reader.num_record_batches))
    else:
        schema = _reader(memory).schema
        batches = iter(_reader(memory, [schema.names.index(name) for name in names]))
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _places(array: Any, memory: Any) -> np.ndarray:
    """Offsets of the values in the file; -1 where they are not of it, since a batch is compressed."""
    kind = {"binary": np.int32, "large_binary": np.int64}.get(str(array.type))
    if kind is None or not len(array):
        return np.full(len(array), -1)
    _, offsets, data = array.buffers()[-3:]
    if data is None or not memory.address <= data.address <= memory.address + memory.size - data.size:
        return np.full(len(array), -1)
    starts = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array)]
    return data.address - memory.address + starts.astype(np.int64)
