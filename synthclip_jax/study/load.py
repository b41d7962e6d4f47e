"""Loads a study file: its `get_study()` returns the study. `FILE.py:2,data=D` calls `get_study("2", data="D")`.

Those that come with the package are found by their names too: `paper`, `paper:tables,data=D`.
"""

import os
import pathlib

from synthclip_jax.config.load import run_file
from synthclip_jax.study.definition import Study


def load_study(path: str | os.PathLike) -> Study:
    """Runs the `get_study()` of a file.

    Raises:
      ConfigError: there is no such file, or it is wrong.
    """
    return run_file(str(pathlib.Path(path)), "get_study", Study, "It must return a synthclip_jax.study.Study", "study")
