"""What the folders of classes are called: by files with class names, or by their own names.

Names of folders lose what all of them share in form and no prompt should say: numbers (`001.dog`), WordNet ids
(`n02085620-Chihuahua`), the letters of LETTER/CLASS, `class_`. WordNet ids alone get ImageNet's names, numbers the
packaged names of the data set if there are any. An id that nobody can name is an error, never a name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synthclip_jax.config.testsets import DatasetError
from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets.class_names import CLASSNAMES_FILE, WNIDS_FILE, key_of, read_names
from synthclip_jax.evals.datasets.layout import last, some
from synthclip_jax.files import text_files

SYNSET_FILES = ("words.txt", "LOC_synset_mapping.txt")  # WordNet id and its words, as ImageNet's subsets bring them
_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")
_NUMBERED = re.compile(r"(\d+)[\s._:)-]+([^\W\d_].*)")
_LABELLED = re.compile(r"(class|label|category|cls)(?:[\s._-]+(?=\w)|(?=\d))(.*)", re.IGNORECASE)
_KEYED = re.compile(r"(n\d{8}|\d+)[\s,:]+(\S.*)")
_SEPARATORS = " _-.:"


class FolderNames:
    """Names the classes of an image folder by its files and its folders' names.

    Attributes:
      notes: what was decided that a user should know.
    """

    def __init__(self, dataset: str, folders: Sequence[Any], letters: bool = False):
        """
        Args:
          dataset: its name, by which packaged class names are known.
          folders: where files with class names may lie, the split's folder first.
          letters: the first parts of the classes' paths are letters that mean nothing.
        """
        self.dataset, self.letters, self._folders = dataset, letters, folders
        self.notes: list[str] = []
        self._classnames = self._find(CLASSNAMES_FILE)
        self._wnids = self._find(WNIDS_FILE)
        self.lines = read_names(self._classnames) if self._classnames is not None else ()

    def _find(self, *names: str) -> Any:
        return next((folder / name for folder in self._folders for name in names if (folder / name).exists()), None)

    def name(self, paths: Sequence[str], all_paths: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The names of the classes.

        Args:
          paths: of the class folders, below the split's folder.
          all_paths: gives those of all splits, for which a file may have names as well.

        Raises:
          DatasetError: names and folders do not belong together, or a folder's name is an id without a name.
        """
        if self._classnames is None:
            return self._by_folder(paths)
        names = self._by_file(paths)
        if names is None and self._classnames.parent != self._folders[0]:
            everything = list(all_paths())
            if (named := self._by_file(everything)) is not None:
                of = dict(zip(everything, named, strict=True))
                names = tuple(of[path] for path in paths)
        if names is None:
            raise DatasetError(
                f"{self._folders[0]}: {CLASSNAMES_FILE} has {len(self.lines)} class names for {len(paths)} class"
                f" folders. Write one line for each folder, in their order, or FOLDER<tab>NAME"
            )
        return names

    # ---- files -----------------------------------------------------------------------------------------------------

    def _by_file(self, paths: Sequence[str]) -> tuple[str, ...] | None:
        """Names by the lines of the file: by id where each line has one, by name where the names are the folders', else
        by their order; None if they are too many or too few."""
        if (given := self._pairs(paths)) is not None:
            missing = [path for path in paths if path not in given]
            if missing:
                raise DatasetError(f"{self._classnames}: no line for {some(missing)}. Each folder needs one")
            return tuple(given[path] for path in paths)
        folders = [{key_of(text), key_of(_plain(text))} for text in self._texts(paths)]
        lines = list(map(key_of, self.lines))
        if all(last(path).isdecimal() for path in paths):  # a number is no name that a line could be joined by
            if len(lines) == len(paths):
                self._note_order(paths)
            return self.lines if len(lines) == len(paths) else None
        places = [next((place for place, line in enumerate(lines) if line in texts), None) for texts in folders]
        if None not in places and len(set(places)) == len(places):
            if places != list(range(len(lines))):
                self.notes.append(f"{CLASSNAMES_FILE} is joined with the folders by name, not by line")
            return tuple(self.lines[place] for place in places if place is not None)
        if len(lines) != len(paths):
            return None
        for index, place in enumerate(places):
            if place is not None and lines[index] not in folders[index] and place != index:
                raise DatasetError(
                    f"{self._classnames}: line {index + 1} ({self.lines[index]!r}) would name the folder"
                    f" {paths[index]}, and line {place + 1} is that folder's own name. Lines go in the order of the"
                    f" folders ({some(paths)}); or write FOLDER<tab>NAME"
                )
        return self.lines

    def _note_order(self, paths: Sequence[str]) -> None:
        if sorted(paths) != list(paths):
            self.notes.append(
                f"{CLASSNAMES_FILE} names the folders in the order of their numbers ({some(paths)}), not of their text"
            )

    def _pairs(self, paths: Sequence[str]) -> dict[str, str] | None:
        """Name by path where each line of the file has a folder's name or number first."""
        if all("\t" in line for line in self.lines):
            pairs = [line.split("\t", 1) for line in self.lines]
        elif all(map(_KEYED.fullmatch, self.lines)) and all(
            _WNID.fullmatch(last(p)) or last(p).isdecimal() for p in paths
        ):
            pairs = [list(match.groups()) for line in self.lines if (match := _KEYED.fullmatch(line))]
        else:
            return None
        named = {_number(key.strip()): name.strip() for key, name in pairs}
        if len(named) < len(pairs):
            raise DatasetError(f"{self._classnames}: two lines name the same folder. Each folder needs one")
        found = {}
        for path in paths:
            for key in (path, last(path)):
                if _number(key) in named:
                    found[path] = named[_number(key)]
                    break
        if not found:  # then the first words are part of the names
            return None
        return found

    # ---- names of folders ------------------------------------------------------------------------------------------

    def _texts(self, paths: Sequence[str]) -> list[str]:
        """The part of each path that names the class."""
        parts = [path.split("/")[1:] if self.letters and "/" in path else path.split("/") for path in paths]
        ends = {each[-1] for each in parts}
        if len(ends) == len(parts) and len({len(each) for each in parts}) == 1:
            return [each[-1] for each in parts]
        return [" ".join(each) for each in parts]

    def _by_folder(self, paths: Sequence[str]) -> tuple[str, ...]:
        texts = self._texts(paths)
        packaged = prompts.class_names_of(self.dataset)
        if (codes := prompts.folder_names_of(self.dataset)) and all(text in codes for text in texts):
            return tuple(codes[text] for text in texts)
        texts = self._without_label(texts)
        if self._wnids is not None:
            texts = self._check_wnids(texts)
        if any(map(_WNID.search, texts)):
            return self._by_wordnet(texts)
        if all(text.isdecimal() for text in texts):
            return self._by_number(texts, packaged)
        names = list(map(_spoken, self._without_number(texts)))
        if packaged is None:
            return tuple(names)
        of = {key_of(name): name for name in packaged}
        unknown = [name for name in names if key_of(name) not in of]
        if not unknown:
            return tuple(of[key_of(name)] for name in names)
        self.notes.append(
            f"the packaged class names for {self.dataset!r} ({len(packaged)}) are not used: there is no {some(unknown)}"
            " among them"
        )
        return tuple(names)

    def _without_label(self, texts: list[str]) -> list[str]:
        matches = [_LABELLED.fullmatch(text) for text in texts]
        if not all(matches) or len({match[1].lower() for match in matches if match}) > 1:
            return texts
        rest = [match[2] for match in matches if match]
        if len(set(map(key_of, rest))) < len(rest) or not all(text[0].isalnum() for text in rest):
            return texts
        self.notes.append(f"names without {texts[0][: -len(rest[0])]!r}: {texts[0]} is called {rest[0]!r}")
        return rest

    def _without_number(self, texts: list[str]) -> list[str]:
        """Names without the numbers before all of them, unless they differ by these alone (`5_euro`, `10_euro`)."""
        matches = [_NUMBERED.fullmatch(text) for text in texts]
        if not all(matches):
            return texts
        numbers = {int(match[1]) for match in matches if match}
        rest = [match[2] for match in matches if match]
        if len(numbers) < len(texts) or len(set(map(key_of, rest))) < len(rest):
            return texts
        self.notes.append(f"names without the numbers before them: {texts[0]} is called {rest[0]!r}")
        return rest

    def _by_number(self, texts: Sequence[str], packaged: Sequence[str] | None) -> tuple[str, ...]:
        numbers = [int(text) for text in texts]
        if packaged is None and numbers == list(range(1000)) and re.search("imagenet|ilsvrc", self.dataset.lower()):
            packaged = prompts.class_names_of("imagenet1k")
        if packaged is None or len(set(numbers)) < len(numbers):
            self.notes.append(
                f"its folders are called by numbers, and so are its classes ({some(texts)}). For other names write a"
                f" {CLASSNAMES_FILE} there, one class a line in the order of the numbers"
            )
            return tuple(texts)
        first = 0 if 0 in numbers else 1
        if max(numbers) - first >= len(packaged) or (first and max(numbers) != len(packaged)):
            self.notes.append(
                f"the packaged class names for {self.dataset!r} ({len(packaged)}) are not used: its folders are"
                f" numbered {min(numbers)} to {max(numbers)}, and do not say whether they begin at 0 or 1. Write a"
                f" {CLASSNAMES_FILE} there, one class a line in the order of the numbers"
            )
            return tuple(texts)
        if first:
            self.notes.append(f"its folders are numbered from 1: {texts[0]} is called {packaged[numbers[0] - 1]!r}")
        return tuple(packaged[number - first] for number in numbers)

    # ---- WordNet ids -----------------------------------------------------------------------------------------------

    def _by_wordnet(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Names where some folders have a WordNet id in their name: of the id if there is nothing else to it."""
        found = [_WNID.findall(text) for text in texts]
        rests = [_WNID.sub(" ", text).strip(_SEPARATORS) for text in texts]
        if len(set(rests)) == 1:  # nothing, or the same around all: n02129165_val
            rests = ["" for _ in rests]
        alone = [wnids[0] for wnids, rest in zip(found, rests, strict=True) if wnids and not rest]
        names = self._names_of(alone)
        if len(alone) < len(texts) and all(found):
            text, rest = next((text, rest) for text, rest in zip(texts, rests, strict=True) if rest)
            self.notes.append(f"names without their WordNet ids: {text} is called {rest.replace('_', ' ')!r}")
        elif len(alone) < len(texts):
            others = [text for text, wnids in zip(texts, found, strict=True) if not wnids]
            self.notes.append(f"{some(others)}: not called by a WordNet id, as {len(alone)} other folders are")
        return tuple(
            names[wnids[0]] if wnids and not rest else _spoken(rest if wnids else text)
            for text, wnids, rest in zip(texts, found, rests, strict=True)
        )

    def _names_of(self, wnids: Sequence[str]) -> Mapping[str, str]:
        """ImageNet's names for WordNet ids, or those of a list of words beside the folders."""
        unknown = [wnid for wnid in wnids if prompts.imagenet_class_names([wnid]) is None]
        words = self._words() if unknown else {}
        if missing := [wnid for wnid in unknown if wnid not in words]:
            raise DatasetError(
                f"{self._folders[0]}: {some(missing)}: not among ImageNet's 1,000 WordNet ids, so that nobody can say"
                f" what the class is called. Write a {CLASSNAMES_FILE} there with lines FOLDER<tab>NAME, or one name a"
                " line in the order of the folders"
            )
        if unknown:
            self.notes.append(
                f"{len(unknown)} WordNet ids are named by the list of words: {unknown[0]} is called"
                f" {words[unknown[0]]!r}"
            )
        return {wnid: words[wnid] if wnid in words else prompts.imagenet_class_names([wnid])[0] for wnid in wnids}  # type: ignore[index]

    def _words(self) -> dict[str, str]:
        """The first word for each id in a list such as WordNet's words.txt."""
        path = self._find(*SYNSET_FILES)
        if path is None:
            return {}
        pairs = (re.match(r"(n\d{8})\s+([^,;]+)", line) for line in text_files.read_lines(path))
        return {pair[1]: pair[2].strip() for pair in pairs if pair}

    def _check_wnids(self, texts: list[str]) -> list[str]:
        """Joins the ids of wnids.txt with the folders: they are those ids, or their numbers. What neither is stays."""
        wnids = read_names(self._wnids)
        if odd := [wnid for wnid in wnids if not _WNID.fullmatch(wnid)]:
            raise DatasetError(f"{self._wnids}: {odd[0]!r} is no WordNet id such as n01440764")
        if all(text.isdecimal() for text in texts):
            numbers = [int(text) for text in texts]
            if max(numbers) >= len(wnids) or (len(numbers) == len(wnids) and 0 not in numbers):
                raise DatasetError(
                    f"{self._wnids}: {len(wnids)} lines for folders numbered {min(numbers)} to {max(numbers)}. Number"
                    f" the folders from 0, or write a {CLASSNAMES_FILE}"
                )
            return [wnids[number] for number in numbers]
        folders = {wnid for text in texts for wnid in _WNID.findall(text)}
        if not folders:
            raise DatasetError(
                f"{self._wnids}: the folders ({some(texts)}) are called neither by WordNet ids nor by numbers, so that"
                f" the lines belong to none. Remove it, or write a {CLASSNAMES_FILE} with lines FOLDER<tab>NAME"
            )
        if absent := [wnid for wnid in wnids if wnid not in folders]:
            self.notes.append(f"{WNIDS_FILE} lists {len(absent)} ids that no folder is called by: {some(absent)}")
        return texts


def _spoken(text: str) -> str:
    """A folder's name as a prompt has it: its words with one space between them and none around."""
    return " ".join(text.replace("_", " ").split())


def _plain(text: str) -> str:
    """A folder's name without a number or a WordNet id before it."""
    match = _NUMBERED.fullmatch(text)
    return match[2] if match else _WNID.sub(" ", text).strip(_SEPARATORS) or text


def _number(key: str) -> str:
    return str(int(key)) if key.isdecimal() else key
