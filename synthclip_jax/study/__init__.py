"""Studies: grids of ordinary runs, each a workdir, and what they show together.

A study file `configs/studies/NAME.py` has `get_study()`, which returns a `Study` made of what is here. `python -m
synthclip_jax.study` runs it.
"""

from synthclip_jax.study.definition import (
    Beside,
    Cell,
    Claim,
    Curve,
    Rate,
    Scatter,
    Step,
    Study,
    StudyError,
    Trial,
    Work,
)

__all__ = ["Beside", "Cell", "Claim", "Curve", "Rate", "Scatter", "Step", "Study", "StudyError", "Trial", "Work"]
