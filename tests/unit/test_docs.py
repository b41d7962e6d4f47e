"""What the pages name is there: files, rooms, commands with their flags."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "launch" / "README.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)


def test_files_that_the_page_of_the_architecture_names_are_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:gen|synthclip_jax|tests)/[\w/.]+)`", page))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_room_is_on_the_page_of_the_architecture():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package in ("gen", "synthclip_jax"):
        for folder in (ROOT / package).iterdir():
            if (folder / "__init__.py").exists():
                assert f"`{folder.name}`" in page, f"{package}/{folder.name} is not described"


def test_commands_that_the_pages_print_take_the_flags_that_they_print():
    printed = re.findall(r"python -m ((?:gen|synthclip_jax|benchmarks)[\w.]*)([^`\n]*)", TEXT)
    assert len({module for module, _ in printed}) > 15
    for module, rest in printed:
        if module == "benchmarks.NAME":
            continue
        path = ROOT.joinpath(*module.split("."))
        source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        source += '"--config"' if "add_config_argument" in source else ""
        for flag in re.findall(r"--[a-z][a-z-]+", rest):
            assert f'"{flag}"' in source, f"python -m {module} {flag}"
