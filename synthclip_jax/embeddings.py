"""Files of embeddings: written part by part, so that nothing is lost when a run ends early, and joined at the end.

    OUT.parts/plan.json            what is embedded by which checkpoint; a run that means something else is refused
    OUT.parts/images-00003.npz     vectors of one part: `index`, `vectors`, and `skipped`, the indexes without a vector
    OUT                            all of them in order: .npz or .parquet

A part is there if and only if it is whole: it is written under another name and renamed. Joining streams, so that
memory does not grow with the number of vectors. Needs no JAX.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from synthclip_jax.errors import UserError

SUFFIXES = (".npz", ".parquet")


class EmbeddingError(UserError, ValueError):
    """Embeddings that cannot be made or joined as asked; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Vectors of a contiguous run of items, without those that have none."""

    index: np.ndarray
    vectors: Float[np.ndarray, "n embed"]
    skipped: np.ndarray


class Parts:
    """The parts of one file of embeddings.

    Args:
      out: the file to be.
      counts: items of each kind, such as `{"images": 1000, "texts": 30}`.
      size: items of a part.
      plan: JSON that tells what is embedded from anything else.
    """

    def __init__(self, out: str | os.PathLike, counts: Mapping[str, int], size: int, plan: Mapping[str, Any]):
        self.out = pathlib.Path(out)
        if self.out.suffix not in SUFFIXES:
            raise EmbeddingError(f"--out={out}: expected a name that ends in {' or '.join(SUFFIXES)}")
        self.folder = self.out.with_name(f"{self.out.name}.parts")
        self.counts, self.size = dict(counts), size
        self.plan = json.loads(json.dumps({"counts": self.counts, "part_size": size, **plan}))

    def claim(self, redo: bool = False) -> bool:
        """Takes the place, or finds the parts of a run that was ended early.

        Returns:
          Whether everything is there already.

        Raises:
          EmbeddingError: what is there is of something else; every difference is named.
        """
        if redo:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.out.unlink(missing_ok=True)
        path = self.folder / "plan.json"
        before = read_plan(self.out) if self.out.exists() else json.loads(path.read_text()) if path.exists() else None
        if before is not None and before != self.plan:
            keys = [key for key in {**before, **self.plan} if before.get(key) != self.plan.get(key)]
            lines = [f"{key}: {before.get(key)!r} -> {self.plan.get(key)!r}" for key in keys]
            raise EmbeddingError(
                f"{self.out}: holds something else (there -> here):\n  "
                + "\n  ".join(lines)
                + "\nGive another --out, or"
                " --redo to replace it"
            )
        if self.out.exists():
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        if before is None:
            _replace(path, lambda file: file.write((json.dumps(self.plan, indent=1) + "\n").encode()))
        return False

    def ranges(self, kind: str) -> Iterator[tuple[int, range]]:
        """Number and indexes of each part of a kind."""
        for number, start in enumerate(range(0, self.counts[kind], self.size)):
            yield number, range(start, min(start + self.size, self.counts[kind]))

    def path(self, kind: str, number: int) -> pathlib.Path:
        """Where a part is, once it is whole."""
        return self.folder / f"{kind}-{number:05d}.npz"

    def missing(self, kind: str) -> list[tuple[int, range]]:
        """The parts that are not there yet."""
        return [(number, indexes) for number, indexes in self.ranges(kind) if not self.path(kind, number).exists()]

    def write(self, kind: str, number: int, part: Part) -> None:
        """Writes a part."""
        arrays = {"index": part.index, "vectors": part.vectors, "skipped": part.skipped}
        _replace(self.path(kind, number), lambda file: np.savez(file, **dict[str, Any](arrays)))

    def read(self, kind: str) -> Iterator[Part]:
        """All parts of a kind, in order."""
        for number, _ in self.ranges(kind):
            with np.load(self.path(kind, number)) as file:
                yield Part(file["index"], file["vectors"], file["skipped"])

    def join(self, keys: Mapping[str, Sequence[str]], keep: bool = False) -> dict[str, int]:
        """Joins all parts into the file and removes them.

        Args:
          keys: names of the items of each kind.
          keep: leave the parts, which another process may be joining too.

        Returns:
          How many items of each kind have no vector.
        """
        skipped = {
            kind: np.concatenate([np.zeros(0, np.int64), *(part.skipped for part in self.read(kind))]).astype(np.int64)
            for kind in self.counts
        }
        width = next(part.vectors.shape[1] for kind in self.counts for part in self.read(kind))
        write = self._write_npz if self.out.suffix == ".npz" else self._write_parquet
        _replace(self.out, lambda file: write(file, keys, width, skipped))
        if not keep:
            shutil.rmtree(self.folder)
        return {kind: len(indexes) for kind, indexes in skipped.items()}

    def _write_npz(self, file: Any, keys: Mapping[str, Sequence[str]], width: int, skipped: Mapping[str, Any]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for kind, count in self.counts.items():
                header = {"descr": "<f4", "fortran_order": False, "shape": (count - len(skipped[kind]), width)}
                with archive.open(f"{kind}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for part in self.read(kind):
                        member.write(np.ascontiguousarray(part.vectors, "<f4").tobytes())
                names = np.delete(np.array(keys[kind], str), skipped[kind])
                lost = np.array(keys[kind], str)[skipped[kind]]
                small = {f"{kind[:-1]}_keys": names, f"{kind[:-1]}_skipped": lost}
                for name, array in small.items():
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("plan.npy", "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(self.plan)), allow_pickle=False)

    def _write_parquet(
        self, file: Any, keys: Mapping[str, Sequence[str]], width: int, skipped: Mapping[str, Any]
    ) -> None:
        pyarrow, parquet = _pyarrow()
        lost = {kind: [keys[kind][index] for index in indexes] for kind, indexes in skipped.items()}
        fields = [
            pyarrow.field("kind", pyarrow.string()),
            pyarrow.field("key", pyarrow.string()),
            pyarrow.field("embedding", pyarrow.list_(pyarrow.float32(), width)),
        ]
        notes = {"plan": json.dumps(self.plan), "skipped": json.dumps(lost)}
        schema = pyarrow.schema(fields, metadata=notes)
        with parquet.ParquetWriter(file, schema) as writer:
            for kind in self.counts:
                for part in self.read(kind):
                    flat = pyarrow.array(part.vectors.astype(np.float32).reshape(-1))
                    columns = [
                        pyarrow.array([kind[:-1]] * len(part.index)),
                        pyarrow.array([keys[kind][index] for index in part.index], pyarrow.string()),
                        pyarrow.FixedSizeListArray.from_arrays(flat, width),
                    ]
                    writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def read_plan(path: pathlib.Path) -> dict[str, Any] | None:
    """What a file of embeddings says it holds; None if it says nothing."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return json.loads(str(file["plan"]))
        _, parquet = _pyarrow()
        return json.loads((parquet.read_schema(path).metadata or {})[b"plan"])
    except (KeyError, ValueError, zipfile.BadZipFile, OSError) as error:
        raise EmbeddingError(f"{path}: exists and is no file of embeddings ({error}). Give another --out") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EmbeddingError("pyarrow is not installed: pip install pyarrow, or write .npz") from error
    return pyarrow, pyarrow.parquet


def _replace(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
