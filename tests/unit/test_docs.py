"""What the pages name is there: files, rooms, commands with flags, config keys; and the site names all there is."""

import ast
import itertools
import pathlib
import re
import shlex
import tomllib

import pytest

from docs import generate
from docs.generate import commands, errors
from synthclip_jax.config import ConfigError, default_config, leaves, load_config
from synthclip_jax.config.fields import Field
from synthclip_jax.config.schema import SCHEMA
from synthclip_jax.config.values import allowed
from synthclip_jax.console import COMMANDS, command_name

ROOT = pathlib.Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, ROOT / "launch" / "README.md"]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
TEXT = "\n".join(page.read_text() for page in [*PAGES, *NOTEBOOKS])
SECTIONS = [name for name, node in SCHEMA.items() if not isinstance(node, Field)]
# What else begins as a key does, in the pages: modules, files, methods.
NO_KEYS = re.compile(r"(\w+\.)*(py|json|jsonl|md|html|npz|csv|safetensors|generate)")
CODE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def names(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def unknown_keys(text: str) -> list[str]:
    """Config keys that a page names, in code or out of it, and that the schema has not."""
    found = []
    pattern = rf"(?<![\w./-])(?:--)?(?:config\.)?((?:{'|'.join(SECTIONS)})(?:\.[a-z_][\w]*)+)"
    for name in re.findall(pattern, text):
        first, second = name.split(".")[:2]
        module = (ROOT / first / second).is_dir() or (ROOT / first / f"{second}.py").exists()
        if NO_KEYS.fullmatch(name) or (first == "gen" and module and second not in SCHEMA["gen"]):
            continue
        node = SCHEMA
        for part in name.split("."):
            node = node[part] if not isinstance(node, Field) and part in node else None
            if node is None:
                break
        if node is None and name.rpartition(".")[2] != "update":  # a ConfigDict's method
            found.append(name)
    return found


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
        file = path.with_suffix(".py")
        source = (file if file.exists() else path / "__main__.py").read_text()
        source += '"--config"' if "add_config_argument" in source else ""
        for flag in re.findall(r"--[a-z][a-z-]+", rest):
            assert f'"{flag}"' in source, f"python -m {module} {flag}"


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOKS[0]], ids=names)  # the other one has a `model` of open_clip
def test_config_keys_that_a_page_names_are_in_the_schema(page):
    wrong_on_purpose = ["train.epoch"] if page.name == "start.md" else []
    assert unknown_keys(page.read_text()) == wrong_on_purpose


def test_a_misspelt_key_is_found():
    text = "`train.epoch=2`, --config.gen.images.stepz=3, `data.sources` and `gen.verify`, train.wandb, eval.suits"
    assert unknown_keys(text) == ["train.epoch", "gen.images.stepz", "eval.suits"]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_overrides_of_printed_commands_are_accepted(page):
    for line in re.findall(r"python -m [^`\n]*--config=configs/[^`\n]*", page.read_text()):
        words = shlex.split(line)
        config = next(word.removeprefix("--config=") for word in words if word.startswith("--config="))
        overrides = [word.removeprefix("--config.") for word in words if word.startswith("--config.")]
        load_config(ROOT / config, overrides)


def test_the_example_of_a_wrong_override_is_one():
    with pytest.raises(ConfigError, match=r"Did you mean train\.epochs"):
        load_config(ROOT / "configs" / "quickstart.py", ["train.epoch=2"])


@pytest.mark.parametrize("page", DOCS, ids=names)
def test_blocks_of_python_can_be_read(page):
    for _, language, block in CODE.findall(page.read_text()):
        if language == "python":
            ast.parse(block)


def test_no_table_has_a_pipe_inside_code():
    # Git hosts and mkdocs do not agree on what that is.
    assert [span for page in DOCS for span in re.findall(r"`[^`\n]*\\\|[^`\n]*`", page.read_text())] == []


def test_what_make_is_asked_for_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", TEXT, re.MULTILINE))
    assert {"quickstart", "test", "docs"} <= targets
    assert [target for target in sorted(targets) if f"\n{target}:" not in makefile] == []


def anchors(page: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as mkdocs makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", CODE.sub("", generate.fill(page.read_text())), re.MULTILINE):
        named = re.search(r"\{ #([^ }]+) \}$", heading)
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(named[1] if named else re.sub(r"[-\s]+", "-", words))
    return found


def test_links_between_pages_lead_somewhere():
    count = 0
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
            if link.startswith(("http:", "https:")):
                continue
            place, _, anchor = link.partition("#")
            target = (page.parent / place).resolve() if place else page
            assert target.exists(), f"{names(page)}: {link}"
            if page in DOCS:  # what lies elsewhere is not on the site
                assert target.is_relative_to(ROOT / "docs"), f"{names(page)}: {link}"
            if anchor and "made: commands" not in target.read_text():  # slow to make; mkdocs looks at these
                assert anchor in anchors(target), f"{names(page)}: {link}"
            count += 1
    assert count > 60


def test_every_page_is_in_the_navigation_once():
    site = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- (?:[^:\n]+: )?([\w/]+\.md)$", site, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


def test_every_config_key_is_on_the_site_with_its_meaning_and_bounds():
    site = "\n".join(generate.fill(page.read_text()) for page in DOCS if page.parent.name == "config")
    plain = site.replace("\\", "").replace("&lt;", "<")
    keys = dict(leaves(default_config()))
    assert len(keys) > 180
    for key in keys:
        node = SCHEMA
        for part in key.split("."):
            node = node[part]
        entry = plain.partition(f"{{ #{key} }}")[2].partition("\n### ")[0]
        assert node.doc.replace("\\", "")[1:] in entry, key
        assert allowed(node).replace("\\", "") in entry, key


def test_every_command_is_on_the_site_with_its_flags():
    made = "\n".join(generate.PARTS["commands"](package) for package in commands.PACKAGES)
    assert [package for package in commands.PACKAGES if f"<!-- made: commands {package} -->" not in TEXT] == []
    count = 0
    for package in ("gen", "synthclip_jax"):
        for file in (ROOT / package).rglob("*.py"):
            source = file.read_text()
            if '__name__ == "__main__"' in source:
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
                entry = made.partition(f"{{ #{module} }}\n")[2].partition("\n### ")[0]
                flags = re.findall(r'add_argument\(\s*"(--[a-z-]+)"', source)
                missing = [flag for flag in flags if not re.search(rf"`{flag}[`=]", entry)]
                assert entry, module
                assert command_name(module) not in COMMANDS or f"Installed: `{command_name(module)}`" in entry
                assert missing == [], module
                count += 1
    assert count > 20


def test_every_public_error_is_on_the_site_with_its_lines():
    page = generate.fill((ROOT / "docs" / "errors.md").read_text())
    bases = {}
    for file in itertools.chain((ROOT / "gen").rglob("*.py"), (ROOT / "synthclip_jax").rglob("*.py")):
        for name, above in re.findall(r"^class (\w+)\(([\w., ]+)\):", file.read_text(), re.MULTILINE):
            bases.setdefault(name, []).extend(re.findall(r"\w+", above))
    ours = {"UserError"}
    while more := {name for name, above in bases.items() if ours & set(above)} - ours:
        ours |= more
    assert len(ours) > 40
    assert [name for name in sorted(ours) if f"### `{name}` {{" not in page] == []
    assert "empty, but gen.concepts.sources has" in page.replace("\\", "")  # of the combinations
    assert "Free some and run the same command again" in page  # of the operating system


def test_lines_of_errors_are_those_of_the_source():
    found = {error.name: error for error in errors.known()}
    lines = found["BalanceError"].lines
    assert any(line.startswith("none of … captions contains a concept of the bank.") for line in lines)
    assert sum(len(error.lines) for error in found.values()) > 200


def test_a_marker_without_a_meaning_is_an_error():
    with pytest.raises(KeyError):
        generate.fill("<!-- made: nothing -->")
    assert generate.fill("<!-- made: system -->").count("| `E") > 10


def test_the_citation_has_what_its_format_asks_for():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # of version 1.2.0
    assert cited["cff-version"] == "1.2.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["license"], cited["abstract"]) == (project["license"], f"{project['description']}.")
    for entry in (cited, *cited["references"]):
        assert entry["title"]
        assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in entry["authors"])
    assert cited["references"][0]["identifiers"][0]["value"] == "arXiv:2402.01832"
