"""Where concepts come from. A source is a function of `config.gen.concepts` and of what the user's own files hold; it
yields (text, category) pairs.

A source may yield more than is wanted, best first: the bank takes as many new entries as the settings say.
Every source but `metaclip` and `lists` comes out of a package, so a bank needs no download of its own. To add a source,
write such a function and name it in `SOURCES` and in the schema.
"""

import dataclasses
import difflib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from gen.bank.block_list import BlockList
from gen.bank.files import ConceptFile, read_file, read_text
from gen.bank.tables import BankError as BankError
from gen.bank.tables import parse_json
from synthclip_jax.config.generation import Concepts
from synthclip_jax.files import text_files

Entries = Iterator[tuple[str, str]]

DEBIAN_WORDNET = "/usr/share/wordnet"

# WordNet's lexicographer files, in the order of their numbers (lexnames(5WN)).
LEXICOGRAPHER_FILES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)


@dataclasses.dataclass(frozen=True)
class Brought:
    """What the user's own files hold.

    Attributes:
      lists: those of `gen.concepts.lists`.
      metaclip: the entries of `gen.concepts.metaclip_path`.
      block_list: what no entry may contain.
    """

    lists: list[ConceptFile]
    metaclip: list[str]
    block_list: BlockList

    @classmethod
    def read(cls, settings: Concepts) -> "Brought":
        """Reads all of them.

        Raises:
          BankError: a file is missing, or is not in a form that is known.
        """
        metaclip = pathlib.Path(settings.metaclip_path).expanduser() if settings.metaclip_path else None
        return cls(
            [read_file(name, "gen.concepts.lists") for name in settings.lists],
            _texts(metaclip, "gen.concepts.metaclip_path") if metaclip else [],
            BlockList.of(settings.block_list),
        )

    def lines(self) -> Iterator[str]:
        """How the files were understood and what of them is left out, for people."""
        for file in self.lists:
            yield from (f"{file.path}: {note}" for note in (*file.notes, *file.left_out.lines()))
        yield from (f"block list: {line}" for line in self.block_list.lines())


def numbers(settings: Concepts, brought: Brought) -> Entries:
    """The numbers 0 to 99, with which MetaCLIP's list begins."""
    return ((str(number), "number") for number in range(100))


def wordnet(settings: Concepts, brought: Brought) -> Entries:
    """The first lemma of each synset, with underscores as spaces and in WordNet's own spelling (`Paris`, `dog`).

    The category is the lexicographer file of the lemma's most frequent sense among those kept: `apple` is noun.food
    before it is noun.plant. MetaCLIP takes the same lemmas in lower case.

    Raises:
      BankError: a file is missing or is not in WordNet's format, or a category does not exist.
    """
    folder = wordnet_folder(settings)
    wanted = set(settings.wordnet_categories) or set(LEXICOGRAPHER_FILES)
    for unknown in sorted(wanted.difference(LEXICOGRAPHER_FILES)):
        near = difflib.get_close_matches(unknown, LEXICOGRAPHER_FILES, n=1)
        raise BankError(
            f"gen.concepts.wordnet_categories: given {unknown!r}, allowed: {', '.join(LEXICOGRAPHER_FILES)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    for pos in settings.wordnet_pos:
        senses = [sense for sense in _synsets(folder / f"data.{pos}") if sense[2] in wanted]
        rank = _sense_ranks(folder / f"index.{pos}")
        category: dict[str, tuple[int, str]] = {}
        for offset, lemma, name in senses:
            candidate = (rank.get((lemma.lower(), offset), 999), name)
            category[lemma] = min(category.get(lemma, candidate), candidate, key=lambda pair: pair[0])
        for lemma, (_, name) in category.items():
            yield lemma.replace("_", " "), name


def wordnet_folder(settings: Concepts) -> pathlib.Path:
    """Where WordNet's dictionary is."""
    return pathlib.Path(settings.wordnet_path or DEBIAN_WORDNET).expanduser()


def _synsets(path: pathlib.Path) -> Iterator[tuple[str, str, str]]:
    """(offset, first lemma, lexicographer file) of each line of a `data.*` file (wndb(5WN))."""
    if not path.is_file():
        raise BankError(
            f"{path}: no such file. Install WordNet's dictionary (Debian: apt install wordnet-base), or give its folder"
            " with --config.gen.concepts.wordnet_path=FOLDER, or leave 'wordnet' out of gen.concepts.sources"
        )
    for number, line in enumerate(_lines(path), start=1):
        if line.startswith("  ") or not line.strip():  # the licence at the top
            continue
        fields = line.split(maxsplit=5)
        try:
            # An adjective may carry where it stands: "galore(ip)".
            yield fields[0], re.sub(r"\((a|p|ip)\)$", "", fields[4]), LEXICOGRAPHER_FILES[int(fields[1])]
        except (IndexError, ValueError) as error:
            raise BankError(
                f"{path}:{number}: not a synset of WordNet's data files (offset, file number, part of speech, ...):"
                f" {line.strip()[:60]!r}"
            ) from error


def _sense_ranks(path: pathlib.Path) -> dict[tuple[str, str], int]:
    """How frequent a sense (lemma, synset offset) is among its lemma's, 0 first, from an `index.*` file if there."""
    ranks = {}
    if path.is_file():
        for line in _lines(path):
            if line.startswith("  ") or not line.strip():
                continue
            lemma, _, senses, *rest = line.split()
            for rank, offset in enumerate(rest[-int(senses) :]):
                ranks[lemma, offset] = rank
    return ranks


def unigrams(settings: Concepts, brought: Brought) -> Entries:
    """The English words of `wordfreq`, most frequent first; those without a letter or digit (emoji) are left out."""
    import wordfreq

    everything = 1_000_000
    return ((word, "unigram") for word in wordfreq.top_n_list("en", everything) if any(map(str.isalnum, word)))


def bigrams(settings: Concepts, brought: Brought) -> Entries:
    """The word pairs of `symspellpy`, highest pointwise mutual information first, if both words are frequent.

    Raw PMI puts rare names and foreign phrases on top, hence `bigram_top_words` and `bigram_min_count`.
    """
    import importlib.resources

    import wordfreq

    folder = importlib.resources.files("symspellpy")
    files = {entry.name.split("_en_")[0]: entry for entry in folder.iterdir() if "_en_" in entry.name}
    counts = {}
    for line in files["frequency_dictionary"].read_text(encoding="utf-8-sig").splitlines():
        word, count = line.split()
        counts[word] = int(count)
    frequent = set(wordfreq.top_n_list("en", settings.bigram_top_words))
    scored = []
    for line in files["frequency_bigramdictionary"].read_text(encoding="utf-8-sig").splitlines():
        first, second, count = line.split()
        if int(count) >= settings.bigram_min_count and {first, second} <= frequent and {first, second} <= counts.keys():
            # PMI up to a constant: the size of the corpus does not change the order.
            scored.append((-math.log(int(count) / counts[first] / counts[second]), f"{first} {second}"))
    return ((text, "bigram") for _, text in sorted(scored))


def lists(settings: Concepts, brought: Brought) -> Entries:
    """Your own files (`gen.bank.files`). The category is the file's name."""
    return ((text, pathlib.Path(file.path).stem) for file in brought.lists for text in file.texts)


def metaclip(settings: Concepts, brought: Brought) -> Entries:
    """MetaCLIP's `metadata.json`, unchanged and in its order: as the only source, an entry's index is its id."""
    return ((text, "metaclip") for text in brought.metaclip)


def sprites(settings: Concepts, brought: Brought) -> Entries:
    """What `gen.sprites` can draw: all of it, or the core of common things that look unlike each other."""
    from gen.sprites import vocabulary

    return ((entry.name, entry.category) for entry in vocabulary() if entry.core or settings.sprites == "all")


SOURCES: dict[str, Callable[[Any, Brought], Entries]] = {
    "numbers": numbers,
    "wordnet": wordnet,
    "unigrams": unigrams,
    "bigrams": bigrams,
    "lists": lists,
    "metaclip": metaclip,
    "sprites": sprites,
}


def _texts(path: pathlib.Path, key: str) -> list[str]:
    """A JSON list of texts, as they stand."""
    entries = parse_json(read_text(path, key), path)
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise BankError(f'{path}: holds one {kind}, allowed: a list of strings, such as ["cat", "dog"]')
    for index, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise BankError(f"{path}: entry {index} is {json.dumps(entry)[:60]}, allowed: text. Put it in quotes")
        if not entry.strip():
            raise BankError(f"{path}: entry {index} is empty. Remove it")
        try:
            entry.encode()
        except UnicodeEncodeError as error:
            raise BankError(f"{path}: entry {index} holds half a surrogate pair, which is no character") from error
    return entries


def _lines(path: pathlib.Path) -> list[str]:
    return text_files.split_lines(read_text(path))
