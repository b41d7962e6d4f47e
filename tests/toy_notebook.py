"""Notebooks of docs/notebooks, executed here with other parameters."""

import pathlib
from collections.abc import Mapping
from typing import Any

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "notebooks"


def execute(name: str, folder: pathlib.Path, environment: Mapping[str, str], first: str = "", **parameters: Any) -> str:
    """Executes a notebook in a folder and returns what its cells printed.

    Args:
      first: code that is run before all cells.
      parameters: values put in below the cell of parameters, as papermill does it.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; the text has what it printed.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / name, as_version=4)
    (place,) = (n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    client = nbclient.NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**environment, "IPYTHONDIR": str(folder / "ipython")})
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.get("text") or output["data"].get("text/html", "") for output in outputs)
