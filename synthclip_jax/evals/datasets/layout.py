"""Which folder of an image folder is the split that is asked for. Looks at names alone.

Folders side by side are splits where two or more have splits' names (see `splits`) and one of them has class folders.
A folder whose only content is one folder of folders stands for that: `images`, `data`, a lone `train`. Whatever is
decided here and could have been meant otherwise is noted, or refused.
"""

from collections.abc import Iterable, Sequence

from synthclip_jax.config import splits
from synthclip_jax.config.testsets import DatasetError
from synthclip_jax.evals.datasets.spec import MissingDataset
from synthclip_jax.files.folders import Walker
from synthclip_jax.images.decoding import IMAGE_EXTENSIONS

MAX_DEPTH = 32  # folders below each other: more is no way to order images


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def last(path: str) -> str:
    """The name of a folder."""
    return path.rpartition("/")[2]


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names of a list, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names):,} in all)" if len(names) > most else "")


class Split:
    """The folder of a split.

    Attributes:
      above: paths below the base, from the split's folder up to the base itself, the empty path.
      name: of the split; empty if there are none.
      names: of all splits side by side.
      notes: what was decided that a user should know.
    """

    def __init__(self, base: str, dataset: str, wanted: str = "", allow_outside: bool = False):
        """Goes down from the base to the split.

        Args:
          base: the folder.
          dataset: what errors call the test set.
          wanted: the split that is asked for; empty for the usual one.
          allow_outside: follow links that lead out of the base.

        Raises:
          MissingDataset: there is no split of this name.
          DatasetError: it cannot be told which folder is meant.
        """
        self.base, self.dataset = base, dataset
        self.above, self.notes = [""], list[str]()
        self._walker = Walker(base, allow_outside)
        self._filled: dict[str, list[str]] = {}
        self.name, self.names = self._find(wanted)

    @property
    def path(self) -> str:
        """Of the split's folder, below the base."""
        return self.above[0]

    def shown(self, path: str) -> str:
        """A path below the base as an error names it."""
        return f"{self.base}/{path}" if path else self.base

    def _find(self, wanted: str) -> tuple[str, list[str]]:
        while len(self.above) < MAX_DEPTH:
            filled = self.filled(self.path)
            if there := self._splits(filled):
                split = self._wanted(wanted, there) if wanted else self._usual(there)
                if beside := [last(each) for each in filled if last(each) not in there]:
                    self.notes.append(f"{some(beside)}: left out, since beside the splits")
                self._enter(self._under(split))
                self._enter_what_stands_for_it()
                return split, there
            if wanted and self._is_named(self._under(wanted), filled):
                self._enter(self._under(wanted))
                return wanted, [wanted]
            if not self._stands_for(self.path):
                break
            self._enter(filled[0])
            only = last(filled[0])
            if splits.kind_of(only):
                if wanted and not splits.find(wanted, [only]):
                    raise MissingDataset(f"{self.dataset}: {self.base} has no split {wanted!r}; it has {only}")
                if not wanted:
                    self.notes.append(f"split {only} is taken, since it is the only one")
                self._enter_what_stands_for_it()
                return only, [only]
            self.notes.append(f"its classes are those in {only}, the only folder with images")
        if wanted:
            there = list(map(last, self.filled(self.path)))
            raise MissingDataset(
                f"{self.dataset}: {self.shown(self.path)} has no split {wanted!r}; it has"
                f" {some(there, 9) or 'no folders with images'}"
            )
        self._check_single_split(self.filled(self.path))
        return "", []

    def _splits(self, filled: Sequence[str]) -> list[str]:
        """Names of the splits among folders side by side; none if these are classes."""
        names = splits.among(map(last, filled))
        if not names or any(self._has_classes(path) for path in filled if last(path) in names):
            return names
        if len(names) == len(filled):
            raise DatasetError(
                f"{self.shown(self.path)}: {some(names)} look like splits, and hold no class folders. An image folder"
                " is sorted as SPLIT/CLASS/IMAGE or CLASS/IMAGE"
            )
        self.notes.append(f"{' and '.join(names)} are taken for classes, since they hold no class folders")
        return []

    def _usual(self, there: Sequence[str]) -> str:
        """The split to report on: the first that has class folders."""
        with_classes = [name for name in there if self._has_classes(self._under(name))]
        chosen = self._one(splits.usual(with_classes), "the split to report on")
        before = splits.usual(there)
        if chosen not in before:
            self.notes.append(f"split {chosen} is taken, since {some(before)} holds no class folders")
        elif splits.kind_of(chosen) != splits.TEST:
            self.notes.append(f"split {chosen} is taken, since there is no test split beside {some(there)}")
        return chosen

    def _wanted(self, wanted: str, there: Sequence[str]) -> str:
        if found := splits.find(wanted, there):
            return self._one(found, f"split {wanted!r}")
        place = self.shown(self.path)
        raise MissingDataset(f"{self.dataset}: {place} has no split {wanted!r}; it has {', '.join(there)}")

    def _one(self, found: Sequence[str], what: str) -> str:
        if len(found) == 1:
            return found[0]
        raise DatasetError(
            f"{self.shown(self.path)}: {what} could be {' or '.join(found) or 'any of its folders'}. Name it:"
            f" folder:{self.base}@{found[0] if found else 'SPLIT'}"
        )

    def _is_named(self, path: str, filled: Sequence[str]) -> bool:
        """Whether a folder holds class folders: then it is a split because the user says so."""
        return path in filled and not self._has_own(path) and self._has_classes(path)

    def _check_single_split(self, filled: Sequence[str]) -> None:
        """A single folder with a split's name beside others is a class, unless it holds class folders itself."""
        for path in filled if len(filled) > 1 else ():
            if not splits.kind_of(last(path)):
                continue
            if self._is_named(path, filled):
                raise DatasetError(
                    f"{self.shown(path)}: a split or a class? It holds folders with images"
                    f" ({some(map(last, self.filled(path)))}) and lies beside {len(filled) - 1} others. For this split:"
                    f" folder:{self.base}@{last(path)}; for the others, move it away"
                )
            self.notes.append(f"{last(path)} is taken for a class, since no other folder is called like a split")

    def _stands_for(self, path: str) -> bool:
        """Whether a folder only leads to another one, in which the folders with images lie."""
        filled = self.filled(path)
        return len(filled) == 1 and not self._has_own(path) and bool(self.filled(filled[0]))

    def _enter_what_stands_for_it(self) -> None:
        while len(self.above) < MAX_DEPTH and self._stands_for(self.path):
            self._enter(self.filled(self.path)[0])

    def _has_classes(self, path: str) -> bool:
        for _ in range(MAX_DEPTH):
            if not self._stands_for(path):
                break
            path = self.filled(path)[0]
        return len(self.filled(path)) > 1

    def filled(self, path: str) -> list[str]:
        """The sub-folders that have images, at any depth."""
        if path not in self._filled:
            self._filled[path] = [each for each in self._walker.folders(path) if self._has_images(each)]
        return self._filled[path]

    def _has_images(self, path: str) -> bool:
        if path.count("/") >= MAX_DEPTH:
            return False
        return self._has_own(path) or any(map(self._has_images, self._walker.folders(path)))

    def _has_own(self, path: str) -> bool:
        """Whether images lie in the folder itself."""
        return self._walker.has_file(path, is_image)

    def _under(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def _enter(self, path: str) -> None:
        self.above.insert(0, path)
