"""The photographs of Fashion-MNIST (Zalando, MIT licence), as Debian's package dataset-fashion-mnist brings them.

28 x 28 pixels, bright on black, 60,000 for training and 10,000 for tests, as many of each of the ten kinds. They are
dealt out once and for all, whatever a seed is: `generator` trains the text-to-image model and nothing else, `real` is
what CLIP may train on, `validation` is what anything is chosen on, `test` are the official test photographs.
"""

import dataclasses
import gzip
import hashlib
import pathlib
import zlib

import numpy as np
from jaxtyping import Int64, UInt8

from gen.shards import draws
from synthclip_jax.errors import UserError

PACKAGE = "dataset-fashion-mnist"
FOLDER = "/usr/share/datasets/fashion-mnist"
SIDE, KINDS = 28, 10
SPLITS = ("generator", "validation", "real", "test")
# Of the official training photographs, of each kind: the first third, then a fifteenth.
GENERATOR, VALIDATION = 3, 15
# Of what the files of the release hold, unpacked.
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_IMAGES, _LABELS = 2051, 2049
_MOST = 10**6  # photographs that a file may claim
OTHER_FILES = "Give --photographs the folder of the package, or --unchecked for other photographs of this form"


class PhotographError(UserError, ValueError):
    """The photographs are missing, damaged or others; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Photographs:
    """All photographs, and which split each belongs to.

    Attributes:
      pixels: the official training photographs, then those for tests.
      labels: what each shows: a place in `words.ITEMS`.
      splits: numbers of the photographs of each split, in a drawn order, one kind after the other.
      digest: of the pixels and labels.
    """

    pixels: UInt8[np.ndarray, "all 28 28"]
    labels: UInt8[np.ndarray, " all"]
    splits: dict[str, Int64[np.ndarray, " photographs"]]
    digest: str

    def of_kind(self, split: str, label: int) -> Int64[np.ndarray, " photographs"]:
        """Numbers of the photographs of a split that show one kind of item, in their drawn order."""
        numbers = self.splits[split]
        return numbers[self.labels[numbers] == label]


def read_photographs(folder: str | pathlib.Path = FOLDER, unchecked: bool = False) -> Photographs:
    """Reads the four files of a folder and deals the photographs out.

    A photograph that is byte-equal to one of another split is in none but the first of `test`, `generator`,
    `validation` and `real` (the release has no equal ones).

    Args:
      unchecked: take other photographs than those of the release.

    Raises:
      PhotographError: they are not there, damaged, or others.
    """
    folder = pathlib.Path(folder)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        raise PhotographError(
            f"{folder}: no photographs (train-images-idx3-ubyte.gz) there. Install them: apt install {PACKAGE}, or give"
            " --photographs=DIR"
        )
    pixels, labels = [], []
    for part in ("train", "t10k"):
        images = _read(folder, f"{part}-images-idx3-ubyte", unchecked)
        kinds = _read(folder, f"{part}-labels-idx1-ubyte", unchecked)
        if len(images) != len(kinds):
            raise PhotographError(f"{folder}: {len(images)} images of {part}, and {len(kinds)} labels. {OTHER_FILES}")
        pixels.append(images)
        labels.append(kinds)
    all_pixels, all_labels = np.concatenate(pixels), np.concatenate(labels)
    digest = hashlib.sha256(all_pixels.tobytes() + all_labels.tobytes()).hexdigest()[:16]
    splits = _without_equal_ones(_deal(all_labels, len(pixels[0])), all_pixels)
    return Photographs(all_pixels, all_labels, splits, digest)


def _deal(labels: UInt8[np.ndarray, " all"], training: int) -> dict[str, Int64[np.ndarray, " photographs"]]:
    """Numbers of the photographs of each split, kind by kind, each in the order of a hash of its number."""
    dealt: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    order = np.argsort(draws.uniforms(0, [str(number) for number in range(len(labels))], "photographs"), kind="stable")
    for label in range(KINDS):
        own = order[labels[order] == label]
        theirs = own[own < training]
        first, second = len(theirs) // GENERATOR, len(theirs) // GENERATOR + len(theirs) // VALIDATION
        cut = {"generator": theirs[:first], "validation": theirs[first:second], "real": theirs[second:]}
        for split, numbers in {**cut, "test": own[own >= training]}.items():
            dealt[split].append(numbers)
    return {split: np.concatenate(numbers) for split, numbers in dealt.items()}


def _without_equal_ones(splits: dict[str, np.ndarray], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The splits without photographs that one before them has too."""
    kept, seen = {}, set[bytes]()
    for split in ("test", "generator", "validation", "real"):
        contents = [pixels[number].tobytes() for number in splits[split]]
        kept[split] = splits[split][np.array([content not in seen for content in contents], bool)]
        seen.update(contents)
    return {split: kept[split] for split in SPLITS}


def _read(folder: pathlib.Path, name: str, unchecked: bool) -> np.ndarray:
    """The array of a gzipped idx file."""
    path = folder / f"{name}.gz"
    try:
        with gzip.open(path) as file:
            data = file.read(16 + _MOST * SIDE * SIDE + 1)
    except FileNotFoundError:
        raise PhotographError(f"{path}: not there. Install the photographs again: apt install {PACKAGE}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise PhotographError(f"{path}: damaged ({error}). Install them again: apt install {PACKAGE}") from error
    magic, shape = (_IMAGES, (SIDE, SIDE)) if "images" in name else (_LABELS, ())
    header = 4 * (2 + len(shape))
    numbers = np.frombuffer(data[:header], ">u4").tolist() if len(data) >= header else []
    if numbers[:1] != [magic] or tuple(numbers[2:]) != shape:
        raise PhotographError(f"{path}: not an idx file of {'28 x 28 images' if shape else 'labels'}. {OTHER_FILES}")
    if not unchecked and hashlib.sha256(data).hexdigest() != DIGESTS[name]:
        raise PhotographError(f"{path}: not the photographs of the release: its checksum is another. {OTHER_FILES}")
    body = np.frombuffer(data, np.uint8, offset=header)
    if len(body) != numbers[1] * int(np.prod(shape, dtype=int)):
        raise PhotographError(
            f"{path}: cut off, or longer than its header says. Install it again: apt install {PACKAGE}"
        )
    if not shape and len(body) and body.max() >= KINDS:
        raise PhotographError(f"{path}: a label of {body.max()}, and there are {KINDS} kinds. {OTHER_FILES}")
    return body.reshape(-1, *shape)
