"""The concept bank: the texts that captions are made of, each with where it comes from and how frequent it is.

    W/gen/concepts/bank.jsonl   one concept a line, in the order of ids
    W/gen/concepts/bank.json    digest, counts per source; written last, so a bank is there if and only if this is

The bank's digest is carried by everything made from it.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gen.bank.contents import check_contents, contents_of
from gen.bank.sources import SOURCES, BankError, Brought
from gen.shards.local import Executor, run_local
from gen.shards.plans import differences
from gen.shards.store import StageStore, sha256
from synthclip_jax import packages
from synthclip_jax.config import plain
from synthclip_jax.config.generation import Concepts
from synthclip_jax.config.schema import Config
from synthclip_jax.files import state_files, text_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.left_out import LeftOut
from synthclip_jax.text.presence import UNSPACED, WRAPPED, Presence, is_unspaced, normalise
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import stage_folder

# Where a file lies says nothing about what is in it: its texts are compared (`contents` in bank.json).
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


def build_bank(config: Config) -> list[Concept]:
    """Collects the concepts of all sources of `config.gen.concepts`; the first source that has an entry keeps it.

    Raises:
      BankError: a source cannot be read, nothing is left, or it is in another script than the captions.
    """
    settings = config.gen.concepts
    concepts = _build(settings, Brought.read(settings), config.gen.balance.fold_case)[0]
    _check_script([concept.text for concept in concepts], Presence(config.gen.captions.language).language)
    return concepts


def _build(
    settings: Concepts, brought: Brought, fold_case: bool = False
) -> tuple[list[Concept], dict[str, dict[str, int]], LeftOut]:
    """The concepts; for each source how many entries it has, gave, repeated or lost to the block list; what is lost.

    `fold_case`: entries that differ in case alone are one, since no caption would tell them apart.
    """
    import wordfreq

    blocked = brought.block_list
    # In MetaCLIP's own list an entry's index is its id, so that there a repeated entry keeps its place.
    in_place = tuple(settings.sources) == ("metaclip",)
    rows: list[tuple[str, str, str]] = []
    known: set[str] = set()
    counts = {}
    left_out = LeftOut("concepts")
    # As in MetaCLIP's table, a source's size is what it adds to the sources before it.
    sizes = {"unigrams": settings.unigrams, "bigrams": settings.bigrams}
    for source in settings.sources:
        size = sizes.get(source, float("inf"))
        own: set[str] = set()
        count = {"read": 0, "new": 0, "repeated": 0, "elsewhere": 0, "blocked": 0}
        for text, category in SOURCES[source](settings, brought):
            if count["new"] >= size:
                break
            if source != "metaclip":
                text = normalise(text).strip()
            count["read"] += 1
            key = normalise(text).casefold() if fold_case else text
            if blocked and blocked.blocks(text):
                count["blocked"] += 1
                left_out.add("on the block list", text)
            elif key in own:
                count["repeated"] += 1
                if in_place:
                    rows.append((text, source, category))
            elif key in known:
                count["elsewhere"] += 1
            elif text:
                count["new"] += 1
                rows.append((text, source, category))
                known.add(key)
            own.add(key)
        counts[source] = count
    frequencies = [wordfreq.word_frequency(text, "en") for text, _, _ in rows]
    numbers = list(range(len(rows)))
    if 0 < settings.limit < len(rows):
        numbers = sorted(sorted(numbers, key=lambda number: -frequencies[number])[: settings.limit])
        left_out.add(f"beyond gen.concepts.limit={settings.limit:,}", "the least frequent", len(rows) - len(numbers))
    if not rows:
        raise BankError(
            f"the concept bank is empty: the sources {', '.join(settings.sources)} gave no entry"
            + (" that the block list allows" if blocked else "")
            + ". Check gen.concepts"
        )
    concepts = [Concept(index, *rows[number], frequencies[number]) for index, number in enumerate(numbers)]
    return concepts, counts, left_out


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Builds the bank of a workdir, unless it is there.

    Raises:
      BankError: a source cannot be read, the bank is empty, or its entries are not in the language of the captions.
      PlanMismatch: the bank there was made with other settings or from files that have changed since.
    """
    settings = config.gen.concepts
    store = StageStore(stage_folder(workdir, "concepts", config.gen.version))
    plan: dict[str, Any] = {"stage": "concepts", "concepts": _parameters(settings)}
    if config.gen.balance.fold_case:
        plan["fold_case"] = True
    if store.plan_path.exists():
        plan = store.ensure_plan(_as_planned(store.read_plan(), plan))
    meta_path = store.folder / generated.BANK_RECORD
    if meta_path.exists():
        meta = generated.read_bank_record(meta_path, BankError, {"count": int, "sources": dict})
        check_contents(meta, settings, store.folder, lambda: _digest(_texts_of(settings), settings))
        return _summary(meta)
    brought = Brought.read(settings)
    concepts, counts, left_out = _build(settings, brought, config.gen.balance.fold_case)
    presence = Presence(config.gen.captions.language, config.gen.balance.fold_case)
    texts = [concept.text for concept in concepts]
    _check_script(texts, presence.language)
    patterns = collections.Counter(presence.pattern(normalise(text)) for text in texts)
    about = {
        "sources": counts,
        # What MetaCLIP's rule can never find in a caption, because it puts spaces around these marks there.
        "unmatchable": sum(any(mark in text for mark in WRAPPED) for text in texts) if presence.language == "en" else 0,
        "alike": len(texts) - len(patterns),
        "left_out": left_out.as_dict(),
        "contents": contents_of(settings, brought),
        "versions": packages.installed(("wordfreq", "symspellpy")),
    }
    # The plan comes after the sources were read: a mistyped path can be corrected without a mismatch.
    store.ensure_plan(plan)
    meta = write_bank_files(store.folder, concepts, _digest(texts, settings), about)
    for line in brought.lines():
        print(f"concepts: {line}")
    _print_counts(meta, settings)
    return _summary(meta)


def write_bank_files(
    folder: Location, concepts: Sequence[Concept], digest: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the two files of a bank.

    Args:
      digest: of the bank.
      about: what its record says beside.

    Returns:
      The record.
    """
    lines = "".join(f"{json.dumps(_row(concept), ensure_ascii=False)}\n" for concept in concepts).encode()
    record = {
        "sealed": True,
        "digest": digest,
        "count": len(concepts),
        **about,
        generated.BANK: {"bytes": len(lines), "sha256": sha256(lines)},
    }
    write_atomic(folder / generated.BANK, lines)
    state_files.write(folder / generated.BANK_RECORD, record)
    return record


def load_bank(workdir: Location, version: str = "") -> Bank:
    """Reads the bank of a workdir, of the newest version if none is named.

    Raises:
      BankError: there is none yet, it is damaged, or its files do not belong together.
    """
    folder = stage_folder(workdir, "concepts", version)
    if not (folder / generated.BANK_RECORD).exists():
        raise BankError(f"{folder}/bank.json: no such file. Run the concepts stage first: python -m gen ...")
    meta = generated.read_bank_record(folder / generated.BANK_RECORD, BankError)
    again = f"Delete {folder} and run the concepts stage again: the same settings give the same bank"
    try:
        data = text_files.read_bytes(folder / generated.BANK)
    except FileNotFoundError:
        data = b""
    except text_files.TextFileError as error:
        raise BankError(f"{error}. {again}") from error
    if sha256(data) != meta[generated.BANK]["sha256"]:
        raise BankError(f"{folder}/bank.jsonl: missing, or changed since it was written. {again}")
    try:
        concepts = [Concept(**json.loads(line)) for line in data.splitlines()]
        problem = len(concepts) != meta.get("count", len(concepts)) or any(
            concept.id != index or not isinstance(concept.text, str) for index, concept in enumerate(concepts)
        )
    except (ValueError, TypeError, RecursionError):
        problem = True
    if problem:
        raise BankError(f"{folder}/bank.jsonl: not a bank, or another one than {folder}/bank.json counts. {again}")
    return Bank(concepts, meta["digest"])


def read_meta(workdir: Location, version: str = "") -> dict[str, Any]:
    """Digest, size and sources of a workdir's bank, without its concepts.

    Raises:
      BankError: there is none yet, or its record is damaged.
    """
    path = stage_folder(workdir, "concepts", version) / generated.BANK_RECORD
    if not path.exists():
        raise BankError(f"{path}: no such file. Run the concepts stage first: python -m gen ...")
    return generated.read_bank_record(path, BankError, {"count": int})


def _parameters(settings: Concepts) -> dict[str, Any]:
    """The settings without places."""
    return {key: value for key, value in plain(settings).items() if key not in _PATHS}


def _digest(texts: Sequence[str], settings: Concepts) -> str:
    return sha256(to_json({"texts": list(texts), "parameters": _parameters(settings)}))[:16]


def _texts_of(settings: Concepts) -> list[str]:
    return [concept.text for concept in _build(settings, Brought.read(settings))[0]]


def _as_planned(there: Any, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan that is there, if it differs from ours only as older plans do, which hold places and no fold_case."""
    try:
        without = {**there, "concepts": {key: item for key, item in there["concepts"].items() if key not in _PATHS}}
    except (TypeError, KeyError, AttributeError):
        return plan
    old = any(key in there["concepts"] for key in _PATHS)
    ours = {key: item for key, item in plan.items() if not (old and key == "fold_case")}
    return plan if differences(without, json.loads(to_json(ours))) else there


def _check_script(texts: Sequence[str], language: str) -> None:
    """Refuses a bank whose concepts are not in the script of the captions.

    Raises:
      BankError: more than half of them are written without spaces, and the language is not.
    """
    unspaced = [text for text in texts if is_unspaced(text)]
    if language in UNSPACED or not unspaced:
        return
    given = f"gen.captions.language={language}"
    names = ", ".join(unspaced[:3])
    if 2 * len(unspaced) > len(texts):
        raise BankError(
            f"{len(unspaced):,} of {len(texts):,} concepts are in a script that does not write words apart ({names}):"
            f" with {given} none would be found in a caption. Allowed for them: {', '.join(UNSPACED)}"
        )
    print(
        f"concepts: {len(unspaced):,} are in a script that does not write words apart ({names}); with {given} they are"
        " found in captions only where spaces are around them"
    )


def _row(concept: Concept) -> dict[str, Any]:
    return {name: getattr(concept, name) for name in Concept.__slots__}  # dataclasses.asdict copies, ten times slower


def _print_counts(meta: Mapping[str, Any], settings: Concepts) -> None:
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
    for line in LeftOut.from_dict(meta["left_out"], "concepts").lines():
        print(f"concepts: {line}")
    if settings.block_list and "on the block list" not in meta["left_out"]:
        print("concepts: the block list blocks no entry")
    if tuple(settings.sources) == ("metaclip",) and meta["left_out"]:
        print("concepts: since entries are left out, an entry's id is not its index in metadata.json")
    if meta["alike"]:
        print(
            f"concepts: {meta['alike']:,} are looked for as another entry is: the first of each counts for all of them"
        )
    if meta["unmatchable"]:
        print(f"concepts: {meta['unmatchable']:,} contain one of {WRAPPED} and can never match a caption")


def _summary(meta: Mapping[str, Any]) -> dict[str, Any]:
    duplicates = sum(count["repeated"] for count in meta["sources"].values())
    return {"concepts": meta["count"], "duplicates": duplicates, "digest": meta["digest"]}
