"""Config and study files that come with the package, found by name from any folder: `--config=quickstart`.

In a checkout they are the files of `configs/` and `configs/studies/`; a wheel has them inside the package.
"""

import difflib
import pathlib
import re

from synthclip_jax.config.values import ConfigError

_NAME = re.compile(r"\w+")
_FOLDERS = {"config": "configs", "study": "configs/studies"}  # by the option that names a file of it


def is_name(text: str) -> bool:
    """Whether a text is a name, and no path."""
    return bool(_NAME.fullmatch(text))


def names(option: str = "config") -> list[str]:
    """The files that come with the package, by their names.

    Args:
      option: of the command line that names one, `config` or `study`.
    """
    return sorted(file.stem for file in _folder(option).glob("*.py"))


def find(path: pathlib.Path, option: str = "config") -> pathlib.Path:
    """The file that a path or a name stands for: one of that path, else one that comes with the package.

    The latter also as the pages write it, `configs/quickstart.py`, where the working folder has no such file.

    Raises:
      ConfigError: there is neither; the text has the nearest one, and the names there are.
    """
    if path.is_file():
        return path
    text, in_folder = str(path), path.parent == pathlib.Path(_FOLDERS[option]) and path.suffix == ".py"
    name = text if is_name(text) else path.stem if in_folder else ""
    if name and (file := _folder(option) / f"{name}.py").is_file():
        return file
    if name == text:
        near = difflib.get_close_matches(text, names(option), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--{option}={text}: neither a file nor a name that comes with the package.{hint} The names are"
            f" {', '.join(names(option))}"
        )
    there = [str(file) for file in sorted(path.parent.glob("*.py"))]
    if in_folder and not there:
        there = [f"{path.parent}/{name}.py" for name in names(option)]
    near = difflib.get_close_matches(text, there, n=1)
    hint = f". Did you mean {near[0]}?" if near else f". There: {', '.join(there)}" if there else ""
    raise ConfigError(f"--{option}={path}: no such file{hint}")


def _folder(option: str) -> pathlib.Path:
    package = pathlib.Path(__file__).parents[1]
    inside = package / _FOLDERS[option]  # of a wheel; setup.py puts it there
    return inside if inside.is_dir() else package.parent / _FOLDERS[option]
