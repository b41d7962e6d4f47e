"""The concept bank: the texts that captions are made of, each with where it comes from and how frequent it is.

    W/gen/concepts/bank.jsonl   one concept a line, in the order of ids
    W/gen/concepts/bank.json    digest, counts per source; written last, so a bank is there if and only if this is

The bank's digest is carried by everything made from it.
"""

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from gen.concept_sources import SOURCES, BankError, block_list, user_files
from gen.executor import Executor, run_local
from gen.matching import WRAPPED
from gen.store import PlanMismatch, StageStore, read_json, sha256, stage_folder, to_json, write_atomic
from synthclip_jax.config import plain
from synthclip_jax.locations import Location

# Where a file lies says nothing about what is in it; the texts do.
_PATHS = ("wordnet_path", "metaclip_path", "lists", "block_list")


@dataclasses.dataclass(frozen=True, slots=True)
class Concept:
    """One entry of the bank.

    Attributes:
      id: its index in the bank.
      text: what stands in a prompt and is looked for in captions.
      source: the source that had it first.
      category: WordNet's lexicographer file, a list's name, or what the source says.
      frequency: share of this word or phrase among the words of English text (wordfreq); 0 if unknown.
    """

    id: int
    text: str
    source: str
    category: str
    frequency: float


@dataclasses.dataclass(frozen=True)
class Bank:
    """A concept bank: `concepts[i].id == i`."""

    concepts: list[Concept]
    digest: str

    @functools.cached_property
    def texts(self) -> list[str]:
        """The concepts' texts, by id."""
        return [concept.text for concept in self.concepts]


def build_bank(config: Any) -> list[Concept]:
    """Collects the concepts of all sources of `config.gen.concepts`; the first source that has an entry keeps it.

    Raises:
      BankError: a source cannot be read, or nothing is left.
    """
    return _build(config.gen.concepts)[0]


def _build(settings: Any) -> tuple[list[Concept], dict[str, dict[str, int]]]:
    """The concepts, and for each source how many entries it has, gave, repeated, or lost to the block list."""
    import wordfreq

    blocked = block_list(settings)
    entries: dict[str, tuple[str, str]] = {}
    counts = {}
    # As in MetaCLIP's table, a source's size is what it adds to the sources before it.
    sizes = {"unigrams": settings.unigrams, "bigrams": settings.bigrams}
    for source in settings.sources:
        size = sizes.get(source, float("inf"))
        own: set[str] = set()
        count = {"read": 0, "new": 0, "repeated": 0, "elsewhere": 0, "blocked": 0}
        for text, category in SOURCES[source](settings):
            if count["new"] >= size:
                break
            count["read"] += 1
            if _contains(text, blocked):
                count["blocked"] += 1
            elif text in own:
                count["repeated"] += 1
            elif text in entries:
                count["elsewhere"] += 1
            else:
                count["new"] += 1
                entries[text] = (source, category)
            own.add(text)
        counts[source] = count
    rows = [
        (text, source, category, wordfreq.word_frequency(text, "en")) for text, (source, category) in entries.items()
    ]
    if 0 < settings.limit < len(rows):
        kept = sorted(range(len(rows)), key=lambda index: -rows[index][3])[: settings.limit]
        rows = [rows[index] for index in sorted(kept)]
    if not rows:
        raise BankError(
            f"the concept bank is empty: the sources {', '.join(settings.sources)} gave no entry"
            + (" that the block list allows" if blocked else "")
            + ". Check gen.concepts"
        )
    return [Concept(index, *row) for index, row in enumerate(rows)], counts


def _contains(text: str, blocked: set[str]) -> bool:
    if not blocked:
        return False
    words = " ".join(text.lower().split())
    return not blocked.isdisjoint(words.split()) or any(f" {item} " in f" {words} " for item in blocked if " " in item)


def run(config: Any, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Builds the bank of a workdir, unless it is there.

    Raises:
      BankError: a source cannot be read, or the bank is empty.
      PlanMismatch: the bank there was made with other settings or from files that have changed since.
    """
    settings = config.gen.concepts
    store = StageStore(stage_folder(workdir, "concepts", config.gen.version))
    plan = {"stage": "concepts", "concepts": plain(settings)}
    if store.plan_path.exists():
        store.ensure_plan(plan)
    meta_path = store.folder / "bank.json"
    if meta_path.exists():
        meta = read_json(meta_path)
        _check_files(meta["files"], settings, store.folder)
        return _summary(meta)
    concepts, counts = _build(settings)
    lines = "".join(f"{json.dumps(_row(concept), ensure_ascii=False)}\n" for concept in concepts).encode()
    parameters = {key: value for key, value in plain(settings).items() if key not in _PATHS}
    meta = {
        "digest": sha256(to_json({"texts": [concept.text for concept in concepts], "parameters": parameters}))[:16],
        "count": len(concepts),
        "sources": counts,
        # What MetaCLIP's rule can never find in a caption, because it puts spaces around these marks there.
        "unmatchable": sum(any(mark in concept.text for mark in WRAPPED) for concept in concepts),
        "files": {str(path): sha256(path.read_bytes()) for path in user_files(settings)},
        "versions": {name: importlib.metadata.version(name) for name in ("wordfreq", "symspellpy") if _installed(name)},
        "bank.jsonl": {"bytes": len(lines), "sha256": sha256(lines)},
    }
    # The plan comes after the sources were read: a mistyped path can be corrected without a mismatch.
    store.ensure_plan(plan)
    write_atomic(store.folder / "bank.jsonl", lines)
    write_atomic(meta_path, to_json(meta))
    _print_counts(meta)
    return _summary(meta)


def load_bank(workdir: Location, version: str = "") -> Bank:
    """Reads the bank of a workdir, of the newest version if none is named.

    Raises:
      BankError: there is none yet, or its files do not belong together.
    """
    folder = stage_folder(workdir, "concepts", version)
    if not (folder / "bank.json").exists():
        raise BankError(f"{folder}/bank.json: no such file. Run the concepts stage first: python -m gen ...")
    meta = read_json(folder / "bank.json")
    try:
        data = (folder / "bank.jsonl").read_bytes()
    except FileNotFoundError:
        data = b""
    if sha256(data) != meta["bank.jsonl"]["sha256"]:
        raise BankError(
            f"{folder}/bank.jsonl: missing, or changed since it was written. Delete {folder} and run the concepts stage"
            " again: the same settings give the same bank"
        )
    return Bank([Concept(**json.loads(line)) for line in data.splitlines()], meta["digest"])


def _row(concept: Concept) -> dict[str, Any]:
    return {name: getattr(concept, name) for name in Concept.__slots__}  # dataclasses.asdict copies, ten times slower


def _check_files(recorded: Mapping[str, str], settings: Any, folder: Location) -> None:
    """A list edited after the bank was made would be ignored silently; one that is gone does no harm."""
    for path in user_files(settings):
        if path.is_file() and recorded.get(str(path)) != sha256(path.read_bytes()):
            raise PlanMismatch(
                f"{path}: has changed since the concept bank in {folder} was made from it. Restore it, or use another"
                " --workdir"
            )


def _print_counts(meta: Mapping[str, Any]) -> None:
    for source, count in meta["sources"].items():
        notes = [
            f"{count[key]:,} {text}"
            for key, text in (
                ("repeated", "duplicates merged"),
                ("elsewhere", "in a source before"),
                ("blocked", "on the block list"),
            )
            if count[key]
        ]
        print(f"concepts: {source}: {count['new']:,} entries" + (f" ({', '.join(notes)})" if notes else ""))
    if meta["unmatchable"]:
        print(f"concepts: {meta['unmatchable']:,} contain one of {WRAPPED} and can never match a caption")


def _summary(meta: Mapping[str, Any]) -> dict[str, Any]:
    duplicates = sum(count["repeated"] for count in meta["sources"].values())
    return {"concepts": meta["count"], "duplicates": duplicates, "digest": meta["digest"]}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
