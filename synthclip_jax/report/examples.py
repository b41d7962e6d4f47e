"""Single examples and columns of a workdir's tables, as the page shows them."""

import dataclasses
import pathlib

from synthclip_jax.data.example_proto import parse_example


@dataclasses.dataclass(frozen=True)
class Record:
    """One picture of the dataset with its caption."""

    id: str
    image: bytes
    caption: str
    concept: str


def read_columns(path: pathlib.Path, names: list[str]) -> dict[str, list]:
    """Columns of a Parquet file as lists."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=names)
    return {name: table.column(name).to_pylist() for name in names}


def read_record(payload: bytes) -> Record:
    """A record of the dataset; what it lacks is empty."""
    values = parse_example(payload)

    def one(key: str) -> bytes:
        return values.get(key, [b""])[0]

    return Record(
        one("id").decode(errors="replace"),
        one("image"),
        one("caption").decode(errors="replace"),
        one("concept").decode(errors="replace"),
    )
