"""Which folders of a split are classes, and which images are theirs.

1. A folder with images is a class. All below it belongs to it, but for folders of masks or thumbnails beside them.
2. Where a folder has no images of its own, its sub-folders with images are classes: SUN397's and Places'
   LETTER/CLASS and LETTER/CLASS/KIND, or GROUP/CLASS.
3. Unless the sub-folders only order the images of one class: `images`, `part2`, `0001`, one name that all classes
   share, names that hold that of the class.

What can be read in two ways is refused; as many class names as there are folders at the top decide it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from synthclip_jax.config import splits
from synthclip_jax.config.testsets import DatasetError
from synthclip_jax.evals.datasets.layout import MAX_DEPTH, is_image, last, some
from synthclip_jax.files.folders import File, Walker
from synthclip_jax.left_out import LeftOut

MAX_BYTES = 2**30  # of one image's file
_MASKS = re.compile(
    r"(seg(mentation)?[ _-]?)?masks?|segmentations?|annotations?|trimaps?|ground[ _-]?truths?|gt|labels?|depth"
    r"|bbox(es)?|thumb(nail)?s?|previews?"
)
_ORDER = re.compile(
    r"images?|imgs?|pics?|pictures?|photos?|jpe?gs?|png|frames?|raw|data|files|originals?|crops?|new|old|more|misc"
    r"|(part|batch|set|session|folder|group|chunk|subset|fold|camera|cam|view|seq|sequence|id|v|p)?[ _.-]*\d+"
)
# Files that describe images: a folder of these alone is no class that lacks images.
_DESCRIPTIONS = frozenset(
    {
        *("", "txt", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "md", "rst", "html", "htm", "pdf", "mat"),
        *("npy", "npz", "h5", "pkl", "parquet", "tfrecord", "log", "py", "m", "ipynb", "sh", "tar", "gz", "zip", "tgz"),
    }
)


class ClassFolder(NamedTuple):
    """A class: its path below the split's folder, which tells it from all others, and its images in order."""

    path: str
    images: list[File]


class ClassFolders:
    """The classes of a split.

    Attributes:
      classes: in order, numbers by their value.
      letters: the folders above the classes are single letters, which mean nothing.
      left_out: the files that are passed over.
      notes: what was decided that a user should know.
    """

    def __init__(self, base: str, path: str = "", lines: int = 0, allow_outside: bool = False):
        """Looks at all files of a split.

        Args:
          base: the folder of the dataset.
          path: of the split's folder, below the base.
          lines: how many class names the dataset brings; 0 if it brings none.
          allow_outside: follow links that lead out of the base.

        Raises:
          DatasetError: the folders can be understood in more than one way.
        """
        self.left_out, self.notes, self.letters = LeftOut("files"), list[str](), False
        self.folder = f"{base}/{path}" if path else base
        self._path, self._walker = path, Walker(base, allow_outside, path)
        self._images: list[tuple[str, File]] = []  # folder and file
        self._own: set[str] = set()  # folders in which images lie
        self._subs: dict[str, dict[str, None]] = {}  # sub-folders with images at any depth, of the split's folder too
        self._endings: dict[str, set[str]] = {}  # of files that are no images, by folder at the top
        self._read()
        self.classes = self._assign(self._find(lines))

    def _read(self) -> None:
        depth = self._path.count("/") + 2 if self._path else 1
        for file in self._walker.files(self._path, self.left_out):
            folder, _, name = file.path.rpartition("/")
            if folder == self._path:
                if is_image(name):
                    self.left_out.add("image beside the class folders", file.path)
            elif not is_image(name):
                self.left_out.add(_cause_of_ending(name), file.path)
                self._endings.setdefault("/".join(folder.split("/")[:depth]), set()).add(_ending(name))
            elif file.size > MAX_BYTES:
                self.left_out.add("larger than 1 GiB", file.path)
            else:
                self._images.append((folder, file))
                if folder not in self._own:
                    self._own.add(folder)
                    while folder != self._path:
                        above = folder.rpartition("/")[0]
                        self._subs.setdefault(above, {})[folder] = None
                        folder = above

    def _find(self, lines: int) -> list[str]:
        """Folders of all classes in order."""
        tops = [top for top in self._walker.folders(self._path) if not self._is_description(top)]
        full = [top for top in tops if top in self._subs.get(self._path, {})]
        found = list(tops)
        if lines != len(tops):
            found = [*self._leaves(full, sure=lines > 0), *(top for top in tops if top not in full)]
        numbered = all(last(path).isdecimal() for path in found)  # ImageNet-V2 calls them 0, 1, ... 999
        return sorted(found, key=lambda path: (int(last(path)) if numbered else 0, path.split("/")))

    def _is_description(self, top: str) -> bool:
        """Whether a folder holds nothing but lists and the like."""
        endings = self._endings.get(top, set())
        if top in self._subs.get(self._path, {}) or not endings or not endings <= _DESCRIPTIONS:
            return False
        self.notes.append(f"{last(top)} holds no images and is no class")
        return True

    def _leaves(self, tops: Sequence[str], sure: bool) -> list[str]:
        """The classes below the folders at the top. `sure`: it is known that these are not the classes."""
        bare = [top for top in tops if top not in self._own]
        letters = len(tops) > 1 and bare == list(tops) and all(len(last(top)) == 1 for top in tops)
        letters = letters and all(last(top).isalpha() for top in tops)
        if letters and len({last(sub).casefold() for top in tops for sub in self._subs[top]}) > 1:
            self.letters = True
            return [leaf for top in tops for leaf in self._below(top, self._subs_of)]
        parts = {top: found for top in bare if (found := self._parts(top))}
        count: dict[str, int] = {}
        for found in parts.values():
            for name in {last(each).casefold() for each in found}:
                count[name] = count.get(name, 0) + 1
        shared = sorted(name for name, times in count.items() if times > 1)
        if not sure:
            self._check_one_reading(tops, parts, shared, len(count))
            if all(len(found) < 2 for found in parts.values()):
                return list(tops)
        leaves = [leaf for top in tops for leaf in (self._below(top, self._parts) if top in parts else [top])]
        self.notes.append(f"folders in folders are classes of their own, such as {some(self._shown(leaves, tops), 1)}")
        return leaves

    def _shown(self, leaves: Iterable[str], tops: Sequence[str]) -> list[str]:
        return [leaf.removeprefix(self._path + "/") if self._path else leaf for leaf in leaves if leaf not in tops]

    def _check_one_reading(
        self, tops: Sequence[str], parts: dict[str, list[str]], shared: list[str], different: int
    ) -> None:
        """Raises a DatasetError where the folders at the top may be classes, and those in them as well."""
        if inside := [found for found in parts.values() if all(splits.kind_of(last(each)) for each in found)]:
            raise DatasetError(
                f"{self.folder}: splits ({some(map(last, inside[0]))}) inside of the classes. Sort it as"
                " SPLIT/CLASS/IMAGE"
            )
        if shared and different > 1:
            raise DatasetError(
                f"{self.folder}: can be understood in two ways: the classes are {some(map(last, tops))}, or"
                f" {some(shared)}, which several of those hold. For the first, write a {len(tops)}-line classnames.txt"
                f" there; for the second, name one folder: folder:{self.folder}/{last(tops[0])}"
            )

    def _below(self, path: str, subs: Callable[[str], list[str]], depth: int = 0) -> list[str]:
        """The folder itself if it is a class, else the classes in it."""
        found = subs(path) if path not in self._own and depth < MAX_DEPTH else []
        return [leaf for each in found for leaf in self._below(each, subs, depth + 1)] or [path]

    def _subs_of(self, path: str) -> list[str]:
        return list(self._subs.get(path, ()))

    def _parts(self, path: str) -> list[str]:
        """Sub-folders that may be classes: neither masks, nor what orders the images of one class."""
        found = [sub for sub in self._subs.get(path, ()) if not _MASKS.fullmatch(last(sub).casefold())]
        own = _letters_of(last(path))
        names = [last(sub).casefold() for sub in found]
        if all(_ORDER.fullmatch(name) or (len(own) > 1 and own in _letters_of(name)) for name in names):
            return []
        return found

    def _assign(self, folders: Sequence[str]) -> list[ClassFolder]:
        """Gives each class its images."""
        cut = len(self._path) + 1 if self._path else 0
        classes = {folder: ClassFolder(folder[cut:], []) for folder in folders}
        masked: dict[str, list[File]] = {}
        deeper: list[str] = []
        for folder, file in self._images:
            owner, below = folder, list[str]()
            while owner not in classes and owner != self._path:
                owner, _, name = owner.rpartition("/")
                below.append(name.casefold())
            if owner not in classes:
                self.left_out.add("image beside the class folders", file.path)
            elif any(map(_MASKS.fullmatch, below)) and not self.letters:
                masked.setdefault(owner, []).append(file)
            else:
                classes[owner].images.append(file)
                if below and owner in self._own:
                    deeper.append(file.path)
        for owner, files in masked.items():
            if not classes[owner].images:
                classes[owner].images.extend(files)
                continue
            for file in files:
                self.left_out.add("in a sub-folder of masks or thumbnails", file.path)
        if deeper:
            self.notes.append(f"{len(deeper):,} images in sub-folders of a class count as that class: {deeper[0]}")
        return list(classes.values())


def _letters_of(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _cause_of_ending(name: str) -> str:
    ending = _ending(name)
    return f"no image by its name (.{ending})" if ending else "no image by its name"
