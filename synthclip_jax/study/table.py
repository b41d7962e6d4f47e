"""One table of all cells: a row for each, its factors and its numbers. `W/STUDY.csv`, and `W/STUDY.parquet`.

The same records give the same bytes: when a cell was run, where and how fast is in its record alone.
"""

import csv
import io
import os
import pathlib
from typing import Any

from synthclip_jax.files.storage import write_atomic
from synthclip_jax.study.definition import Study, StudyError
from synthclip_jax.study.driver import Outcome

CSV, PARQUET = ".csv", ".parquet"  # behind the name of the study, as several may share a workdir
CELL, STATUS = "cell", "status"
DONE, FAILED, OPEN = "done", "failed", "not run"


def rows(study: Study, outcome: Outcome) -> list[dict[str, Any]]:
    """A row for each cell, in the study's order; all have the same columns, None where there is nothing.

    Raises:
      StudyError: a factor is called as a column of the table.
    """
    factors = list(dict.fromkeys(name for cell in study.cells for name in cell.factors))
    metrics = sorted({name for record in outcome.records.values() for name in record["metrics"]})
    if clash := {CELL, STATUS, *metrics} & set(factors):
        raise StudyError(f"{study.name}: a factor is called {min(clash)!r}, as a column is. Call it otherwise")
    found = []
    for cell in study.cells:
        record = outcome.records.get(cell.name)
        status = DONE if record else FAILED if cell.name in outcome.failed else OPEN
        values = record["metrics"] if record else {}
        found.append(
            {CELL: cell.name, STATUS: status}
            | {name: cell.factors.get(name) for name in factors}
            | {name: values.get(name) for name in metrics}
        )
    return found


def write(workdir: str | os.PathLike, study: Study, outcome: Outcome) -> list[pathlib.Path]:
    """Writes the table.

    Returns:
      The files; without pyarrow there is no Parquet.

    Raises:
      StoreError: they cannot be written.
    """
    table = rows(study, outcome)
    paths = [pathlib.Path(workdir) / f"{study.name}{ending}" for ending in (CSV, PARQUET)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_atomic(paths[0], buffer.getvalue().encode())
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        return paths[:1]
    columns = {name: _one_type([row[name] for row in table]) for name in table[0]}
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    write_atomic(paths[1], content.getvalue())
    return paths


def _one_type(values: list[Any]) -> list[Any]:
    """A factor may be a number here and a word there (`size=all`): then all are words."""
    kinds = {type(value) for value in values if value is not None}
    return [None if value is None else str(value) for value in values] if str in kinds and len(kinds) > 1 else values
