"""What a wheel holds, beyond what pyproject.toml can say. All else is there.

    gen/        as `synthclip_gen`: an unrelated project on PyPI is called `gen`
    configs/    as `synthclip_jax/configs`, so that `--config=quickstart` is found anywhere

A checkout and an editable install keep `gen` and `configs/` as they are. In a wheel three things name generation, and
`renamed` changes them: import statements, import strings (`gen.finalize:run`), and commands (`python -m gen.verify`).
"""

import ast
import io
import pathlib
import re
import shutil
import tokenize

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE, OURS = "gen", "synthclip_gen"
CONFIGS = "synthclip_jax.configs"
# What configs/studies/paper.py reads of the repository, by the same paths beside `configs`.
CARD = "benchmarks/results/nvidia-h100-80gb-hbm3"
MEASURED = (f"{CARD}/train_step.json", f"{CARD}/draw.json", "docs/plans/v5e_4x4.txt")
_IMPORT_STRING = re.compile(rf"{HERE}((?:\.\w+)+:\w+)")
_COMMAND = re.compile(rf"(python -m\s+){HERE}\b")
_TEXTS = {".css", ".html", ".js", ".json", ".md", ".txt"}
_NOTHING = {tokenize.ENCODING, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}


def renamed(source: str) -> str:
    """The source of a module as a wheel has it.

    Raises:
      SystemExit: it imports `gen` in a way that cannot be renamed alone, since names in the module would change.
    """
    lines = source.splitlines(keepends=True)
    places: list[tuple[int, int, int, str]] = []
    before: list[tokenize.TokenInfo] = []  # of the statement
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _NOTHING or token.string in (";", ":"):
            before = []
            continue
        first = [each.string for each in before]
        if token.string == HERE and first == ["from"]:
            places.append((token.start[0], token.start[1], token.end[1], OURS))
        elif token.string == HERE and first[:1] == ["import"]:
            raise SystemExit(f"setup.py: {token.line.strip()}: write it as `from {HERE}... import ...`")
        elif token.type == tokenize.STRING and (found := _IMPORT_STRING.fullmatch(_value(token.string))):
            places.append((token.start[0], token.start[1], token.end[1], f'"{OURS}{found[1]}"'))
        before.append(token)
    for row, start, end, text in reversed(places):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + text + line[end:]
    return renamed_commands("".join(lines))


def _value(literal: str) -> str:
    """The text of a literal of one line; empty for bytes and f-strings."""
    value = ast.literal_eval(literal) if literal[0] in "'\"" and "\n" not in literal else ""
    return value if isinstance(value, str) else ""


def renamed_commands(text: str) -> str:
    """A text in which commands of generation have the wheel's names."""
    return _COMMAND.sub(rf"\g<1>{OURS}", text)


def packages() -> list[str]:
    """Those of the checkout, folders of data among them."""
    return find_namespace_packages(include=[HERE, f"{HERE}.*", "synthclip_jax", "synthclip_jax.*"])


class BuildPy(build_py):
    """Copies the packages, and renames what names generation."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # of an earlier build, whose files may be gone by now
        super().run()
        if self.editable_mode:
            return
        built = pathlib.Path(self.build_lib)
        for name in MEASURED:
            (built / "synthclip_jax" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, built / "synthclip_jax" / name)
        for path in built.rglob("*"):
            change = renamed if path.suffix == ".py" else renamed_commands if path.suffix in _TEXTS else None
            if change and path.is_file():
                text = path.read_text(encoding="utf-8")
                if (new := change(text)) != text:
                    path.write_text(new, encoding="utf-8")


class EditableWheel(editable_wheel):
    """An editable install: the checkout as it stands."""

    def run(self) -> None:
        self.distribution.packages, self.distribution.package_dir = packages(), {}
        super().run()


if __name__ == "__main__":
    configs = [f"{CONFIGS}.{name}" for name in find_namespace_packages("configs")]
    setup(
        packages=[re.sub(rf"^{HERE}\b", OURS, name) for name in packages()] + [CONFIGS, *configs],
        package_dir={OURS: HERE, CONFIGS: "configs"},
        cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
    )
