"""Files of embeddings: written part by part, so that nothing is lost when a run ends early, and joined at the end.

    OUT.parts/plan.json            what is embedded by which checkpoint; a run that means something else is refused
    OUT.parts/images-00003.npz     vectors of one part: `index`, `vectors`, and `skipped`, the indexes without a vector
    OUT                            all of them in order: .npz or .parquet

A part is there if and only if it is whole: it is written under another name and renamed, and its checksums are
compared when it is joined. Joining streams, so that memory does not grow with the number of vectors. Needs no JAX.
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
from synthclip_jax.files import array_files, state_files
from synthclip_jax.files.storage import write_stream

FORMAT = 2  # of a plan: 1 did not note when the files were last changed
# All that a plan held when it had no checksum yet.
_OLDER_PLAN = frozenset(("counts", "part_size", "step", "checkpoint", "images", "texts"))
_PART: Mapping[str, array_files.Form] = {"index": ("iu", 1), "vectors": ("f", 2), "skipped": ("iu", 1)}
SUFFIXES = (".npz", ".parquet")


class EmbeddingError(UserError, ValueError):
    """Embeddings that cannot be made or joined as asked; the text says what to do."""


class DamagedPart(EmbeddingError):
    """A part that is not as it was written."""

    def __init__(self, path: pathlib.Path, problem: object):
        super().__init__(str(problem))
        self.path = path


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
        self.plan = json.loads(json.dumps({"format": FORMAT, "counts": self.counts, "part_size": size, **plan}))

    def claim(self, redo: bool = False) -> bool:
        """Takes the place, or finds the parts of a run that was ended early.

        Returns:
          Whether everything is there already.

        Raises:
          EmbeddingError: what is there is of something else; every difference is named.
        """
        path = self.folder / "plan.json"
        if redo:  # what is in the file stays until there is something to take its place
            shutil.rmtree(self.folder, ignore_errors=True)
        parts = self._parts_plan(path)
        whole = read_plan(self.out) if self.out.exists() and not redo else None
        if whole == self.plan:
            return True
        before = parts if whole is None or parts == self.plan else whole
        if before is not None and before != self.plan:
            keys = [key for key in {**before, **self.plan} if before.get(key) != self.plan.get(key)]
            lines = [f"  {key}: {before.get(key)!r} -> {self.plan.get(key)!r}" for key in keys]
            lines += [] if "format" in before else ["It was made by an older version, which noted less."]
            lines.append("Give another --out, or --redo to replace it")
            raise EmbeddingError(f"{self.out}: holds something else (there -> here):\n" + "\n".join(lines))
        if before is None:
            state_files.write(path, self.plan)
        return False

    def _parts_plan(self, path: pathlib.Path) -> dict[str, Any] | None:
        try:
            remedy = "Delete the folder it is in: its parts are made again."
            return state_files.unsealed(
                state_files.read(path, remedy, error=EmbeddingError, older=_OLDER_PLAN.issuperset)
            )
        except FileNotFoundError:
            return None

    def check_keys(self, names: Mapping[str, Sequence[str]]) -> None:
        """Looks, before any work, whether the file can hold these keys.

        Raises:
          EmbeddingError: two of them become one.
        """
        for kind, keys in names.items() if self.out.suffix != ".npz" else ():
            shown = self._keys(keys)
            if len(set(shown)) != len(shown):
                raise EmbeddingError(f"{self.out}: two {kind} have one key, since a name is no UTF-8. Rename the file")

    def _keys(self, keys: Sequence[str]) -> list[str]:
        """Keys as the file holds them. Parquet has UTF-8 alone: other bytes of a name are written \\xNN."""
        if self.out.suffix == ".npz":
            return list(keys)
        return [os.fsencode(key).decode("utf-8", "backslashreplace") for key in keys]

    def ranges(self, kind: str) -> Iterator[tuple[int, range]]:
        """Number and indexes of each part of a kind."""
        for number, start in enumerate(range(0, self.counts[kind], self.size)):
            yield number, range(start, min(start + self.size, self.counts[kind]))

    def path(self, kind: str, number: int) -> pathlib.Path:
        """Where a part is, once it is whole."""
        return self.folder / f"{kind}-{number:05d}.npz"

    def missing(self, kind: str, log: Callable[[str], Any] = print) -> list[tuple[int, range]]:
        """The parts that are not there yet; one that is cut off or no part is removed, and `log` told of it."""
        missing = []
        for number, indexes in self.ranges(kind):
            try:
                self._read(kind, number, indexes, ("index", "skipped"))
            except FileNotFoundError:
                missing.append((number, indexes))
            except DamagedPart as error:
                log(f"{error} It is made again")
                error.path.unlink(missing_ok=True)
                missing.append((number, indexes))
        return missing

    def write(self, kind: str, number: int, part: Part) -> None:
        """Writes a part."""
        arrays = {"index": part.index, "vectors": part.vectors, "skipped": part.skipped}
        array_files.write(self.path(kind, number), arrays)

    def _read(self, kind: str, number: int, indexes: range, names: Sequence[str]) -> dict[str, np.ndarray]:
        path = self.path(kind, number)
        try:
            arrays = array_files.read(path, {name: _PART[name] for name in names}, "", error=EmbeddingError)
        except EmbeddingError as error:
            raise DamagedPart(path, str(error).rstrip()) from None
        # The file's size tells of the vectors, whose checksum is compared when they are read.
        both = np.sort(np.concatenate([arrays["index"], arrays["skipped"]]))
        vectors = arrays.get("vectors")
        if not np.array_equal(both, np.arange(indexes.start, indexes.stop)):
            raise DamagedPart(path, f"{path}: damaged (it holds other items than it should).")
        if vectors is not None and (len(vectors) != len(arrays["index"]) or not np.isfinite(vectors).all()):
            raise DamagedPart(path, f"{path}: damaged (its vectors do not fit).")
        return arrays

    def read(self, kind: str) -> Iterator[Part]:
        """All parts of a kind, in order.

        Raises:
          DamagedPart: one is not as it was written.
        """
        width = None
        for number, indexes in self.ranges(kind):
            arrays = self._read(kind, number, indexes, tuple(_PART))
            if width is not None and arrays["vectors"].shape[1] != width:
                path = self.path(kind, number)
                raise DamagedPart(path, f"{path}: damaged (its vectors have another length).")
            width = arrays["vectors"].shape[1]
            yield Part(arrays["index"], arrays["vectors"], arrays["skipped"])

    def join(self, keys: Mapping[str, Sequence[str]], keep: bool = False) -> dict[str, int]:
        """Joins all parts into the file and removes them.

        Args:
          keys: names of the items of each kind.
          keep: leave the parts, which another process may be joining too.

        Returns:
          How many items of each kind have no vector.

        Raises:
          DamagedPart: one is not as it was written.
        """
        skipped = {kind: self._skipped(kind) for kind in self.counts}
        width = next(part.vectors.shape[1] for kind in self.counts for part in self.read(kind))
        write = self._write_npz if self.out.suffix == ".npz" else self._write_parquet
        write_stream(
            self.out, lambda file: write(file, {kind: self._keys(keys[kind]) for kind in keys}, width, skipped)
        )
        if not keep:
            shutil.rmtree(self.folder)
        return {kind: len(indexes) for kind, indexes in skipped.items()}

    def _skipped(self, kind: str) -> np.ndarray:
        names = ("index", "skipped")
        found = [self._read(kind, number, indexes, names)["skipped"] for number, indexes in self.ranges(kind)]
        return np.concatenate([np.zeros(0, np.int64), *found]).astype(np.int64)

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
                np.lib.format.write_array(member, np.array(json.dumps(state_files.seal(self.plan))), allow_pickle=False)

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
        notes = {"plan": json.dumps(state_files.seal(self.plan)), "skipped": json.dumps(lost)}
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


def read_plan(path: pathlib.Path) -> dict[str, Any]:
    """What a file of embeddings says it holds.

    Raises:
      EmbeddingError: it is none.
    """
    try:
        if path.suffix == ".npz":
            text = str(array_files.read(path, {"plan": ("U", 0)}, "", EmbeddingError)["plan"])
        else:
            _, parquet = _pyarrow()
            if not path.is_file():
                raise ValueError("not a regular file")
            text = (parquet.read_schema(path).metadata or {})[b"plan"].decode()
        plan = state_files.parse(text.encode(), "its plan", "", error=EmbeddingError, older=_OLDER_PLAN.issuperset)
        return state_files.unsealed(plan)
    except Exception as error:  # pyarrow raises many kinds
        why = str(error).removeprefix(f"{path}: ").strip()
        raise EmbeddingError(f"{path}: exists and is no file of embeddings ({why}). Give another --out") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EmbeddingError("pyarrow is not installed: pip install pyarrow, or write .npz") from error
    return pyarrow, pyarrow.parquet
