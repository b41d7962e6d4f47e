"""Embeds images and texts: unit vectors of a checkpoint, in one file.

    python -m synthclip_jax.embed --workdir=W --images=DIR --texts=captions.txt --out=vectors.npz
    python -m synthclip_jax.embed --workdir=W --images='photos/**/*.jpg' --out=vectors.parquet [--part=0/4]

Images are all those below a folder, or what a pattern finds; what is passed over is counted and said. Texts are the
lines of a file, which end at a line feed and nowhere else. The `.npz` holds `images` and `image_keys`, `texts` and
`text_keys` (line numbers from 0), and the keys of what does not decode in `image_skipped`; a `.parquet` has the columns
kind, key and embedding. Rows have the order of the names, or of the lines.

The work is spread over all devices; --part=I/N takes every Nth part only, for several machines on one file system. A
run that was ended early continues where it was: parts are committed one by one (OUT.parts) and joined at the end. A
part that is damaged is made again.
"""

import argparse
import collections
import fnmatch
import functools
import glob
import hashlib
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from synthclip_jax import wording
from synthclip_jax.data.embeddings import DamagedPart, EmbeddingError, Part, Parts
from synthclip_jax.errors import command, explain
from synthclip_jax.files import text_files
from synthclip_jax.files.folders import regular_files
from synthclip_jax.images.headers import IMAGE_EXTENSIONS
from synthclip_jax.left_out import LeftOut
from synthclip_jax.wording import make_parser

READERS = 16  # files opened at once: on network storage that is mostly waiting
AHEAD = 1024  # files read ahead of the decoding
PART = 8192  # items: what an interruption can cost
LARGEST_TEXT = 2**36  # bytes: millions of captions are read whole
ATTEMPTS = 3  # at joining: a part that is damaged is made again, on a disk that keeps what it is given


def find_images(
    place: str, left_out: LeftOut | None = None, allow_outside: bool = False
) -> tuple[list[str], list[pathlib.Path]]:
    """Keys and files of the images in a folder, or of those that a pattern finds, in the order of their names.

    Args:
      left_out: where to note what is passed over: other files, hidden ones, devices, links that lead out or round.
      allow_outside: follow links that lead out of the folder as well.

    Raises:
      EmbeddingError: there are none.
    """
    left_out = LeftOut("files") if left_out is None else left_out
    root = pathlib.Path(place).expanduser()
    if root.is_dir():
        files = []
        for path in regular_files(root, left_out, allow_outside):
            if path.suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS:
                files.append(path)
            else:
                left_out.add("no image by its name", path.relative_to(root).as_posix())
        files.sort()
        keys = [path.relative_to(root).as_posix() for path in files]
    else:
        files = sorted(_matching(root, left_out, allow_outside))
        keys = [path.as_posix() for path in files]
    if not files:
        extensions = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
        what = f"images ({extensions}) in this folder" if root.is_dir() else "file of this name or pattern"
        passed = f" ({'; '.join(left_out.lines())})" if left_out else ""
        raise EmbeddingError(f"--images={place}: no {what}{passed}")
    return keys, files


def _matching(pattern: pathlib.Path, left_out: LeftOut, allow_outside: bool) -> Iterator[pathlib.Path]:
    """The regular files that a pattern finds. `**` enters each folder once, wherever links lead."""
    parts = pattern.parts
    if "**" not in parts:
        for name in glob.glob(str(pattern)):
            if os.path.isfile(name):
                yield pathlib.Path(name)
            elif not os.path.isdir(name):
                left_out.add("no regular file", name)
        return
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = pathlib.Path(*parts[:fixed])
    for path in regular_files(base, left_out, allow_outside) if base.is_dir() else ():
        if _fits(path.relative_to(base).parts, parts[fixed:]):
            yield path


@functools.lru_cache(maxsize=100_000)
def _fits(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    if not patterns or not names:
        return not names and all(pattern == "**" for pattern in patterns)
    if patterns[0] == "**":
        return _fits(names, patterns[1:]) or _fits(names[1:], patterns)
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def read_texts(place: str | pathlib.Path) -> list[str]:
    """The lines of a file; an empty line is a text as well.

    Raises:
      EmbeddingError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        texts = text_files.read_lines(place, LARGEST_TEXT)
    except (OSError, text_files.TextFileError) as error:
        raise EmbeddingError(f"--texts={place}: cannot be read as UTF-8 text ({explain(error) or error})") from error
    if not texts:
        raise EmbeddingError(f"--texts={place}: the file is empty")
    return texts


def embed(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    images: str = "",
    texts: str | pathlib.Path = "",
    step: int | None = None,
    batch_size: int = 256,
    part_size: int = PART,
    part: tuple[int, int] = (0, 1),
    redo: bool = False,
    log: Any = print,
    allow_outside: bool = False,
) -> bool:
    """Embeds images and texts into a file.

    Args:
      workdir: a workdir, or one checkpoint's folder.
      images: folder or pattern; empty: none.
      texts: file of lines; empty: none.
      part_size: items between two commits.
      part: (which, of how many): process every n-th part only.
      redo: replace what is in `out`.
      allow_outside: take images that lie outside of the folder, where links in it lead there.

    Returns:
      Whether the file is complete; with several parts the last process completes it.

    Raises:
      EmbeddingError: nothing to embed, or `out` holds something else.
      EvaluationError: the embeddings are not finite.
      CheckpointError: there is no such checkpoint.
    """
    if not images and not texts:
        raise EmbeddingError("nothing to embed: give --images, --texts or both")
    left_out = LeftOut("files")
    keys, files = find_images(images, left_out, allow_outside) if images else ([], [])
    for line in left_out.lines():
        log(f"{images}: {line}")
    lines = read_texts(texts) if texts else []
    counts = {kind: len(items) for kind, items in (("images", files), ("texts", lines)) if items}
    names = {"images": keys, "texts": [str(number) for number in range(len(lines))]}
    checkpoint, digest = _identity(workdir, step)
    plan = {"step": checkpoint, "checkpoint": digest, "images": _digest_of_files(keys, files)}
    plan["texts"] = _digest(lines)
    parts = Parts(out, counts, part_size, plan)
    if parts.claim(redo):
        log(f"{out}: everything is there")
        return True
    parts.check_keys(names)
    for _ in range(ATTEMPTS):
        missing = {kind: parts.missing(kind, log) for kind in counts}
        todo = {kind: [item for item in missing[kind] if item[0] % part[1] == part[0]] for kind in counts}
        left = sum(len(indexes) for items in todo.values() for _, indexes in items)
        if left < sum(counts.values()):
            log(f"{sum(counts.values()) - left:,} of {sum(counts.values()):,} are there already or another process's")
        if left:
            encoder = _load_encoder(workdir, checkpoint, batch_size)
            for line in _make(encoder, files, lines, parts, todo, log).lines():
                log(f"{images}: {line}")
        others = [parts.path(kind, number).name for kind in counts for number, _ in parts.missing(kind, log)]
        if others:
            log(f"{len(others)} parts are left to the other processes: {', '.join(others[:3])}...")
            return False
        try:
            skipped = parts.join(names, keep=part[1] > 1)
            break
        except DamagedPart as error:
            log(f"{error} It is made again")
            error.path.unlink(missing_ok=True)
    else:
        raise EmbeddingError(f"{parts.folder}: parts are damaged again and again. Check the disk")
    for kind, count in counts.items():
        lost = f", {skipped[kind]:,} do not decode and have none" if skipped[kind] else ""
        log(f"{out}: {count - skipped[kind]:,} vectors of {kind}{lost}")
    return True


def _load_encoder(workdir: str | pathlib.Path, step: int, batch_size: int) -> Any:
    from synthclip_jax.model.encoder import load_encoder

    return load_encoder(workdir, step, batch_size)


def _make(
    encoder: Any,
    files: Sequence[pathlib.Path],
    lines: Sequence[str],
    parts: Parts,
    todo: Mapping[str, Sequence[tuple[int, range]]],
    log: Any,
) -> LeftOut:
    """Makes these parts; gives the images that have no vector, by cause."""
    for number, indexes in todo.get("texts", ()):
        vectors = encoder.texts([lines[index] for index in indexes])
        parts.write("texts", number, Part(np.array(indexes), vectors, np.zeros(0, np.int64)))
    return _embed_images(encoder, files, parts, todo["images"], log) if todo.get("images") else LeftOut("images")


def _embed_images(
    encoder: Any, files: Sequence[pathlib.Path], parts: Parts, todo: Sequence[tuple[int, range]], log: Any
) -> LeftOut:
    """One stream over all parts, so that the device need not wait between them; a thread of its own writes them.

    Returns:
      What has no vector, by cause.
    """
    wanted = [index for _, indexes in todo for index in indexes]
    waiting = collections.deque(todo)
    found: dict[int, np.ndarray] = {}
    lost: set[int] = set()
    unreadable: dict[int, str] = {}
    left_out = LeftOut("images")
    started = reported = time.monotonic()
    done = 0
    with ThreadPoolExecutor(1) as writer:
        writing: collections.deque[Future] = collections.deque()
        for batch in encoder.images(_read_ahead(wanted, files, unreadable)):
            found.update(zip(batch.keys, batch.embeddings, strict=True))
            lost.update(batch.skipped)
            for index, cause in zip(batch.skipped, batch.causes, strict=True):
                left_out.add(unreadable.get(index, cause), str(files[index]))
            done += len(batch.keys) + len(batch.skipped)
            while waiting and waiting[0][1][-1] <= wanted[done - 1]:
                number, indexes = waiting.popleft()
                good = [index for index in indexes if index not in lost]
                rows = np.zeros((len(good), encoder.embed_dim), np.float32)
                for row, index in enumerate(good):
                    rows[row] = found.pop(index)
                bad = np.array([index for index in indexes if index in lost], np.int64)
                writing.append(writer.submit(parts.write, "images", number, Part(np.array(good, np.int64), rows, bad)))
                if len(writing) > 2:
                    writing.popleft().result()
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                rate = done / (reported - started)
                log(f"{done:,} of {len(wanted):,} images, {rate:,.0f}/s, {(len(wanted) - done) / rate:,.0f} s left")
        for future in writing:
            future.result()
    return left_out


def _read_ahead(
    indexes: Iterable[int], files: Sequence[pathlib.Path], unreadable: dict[int, str]
) -> Iterator[tuple[int, bytes]]:
    """Files by their index, read by threads; one that cannot be read is empty, and `unreadable` says why."""

    def read(index: int) -> bytes:
        try:
            return text_files.read_bytes(files[index])
        except OSError as error:
            unreadable[index] = f"file that cannot be read ({error.strerror})"
        except text_files.TextFileError:
            unreadable[index] = "no regular file, or one of more than 1 GiB"
        return b""

    with ThreadPoolExecutor(READERS) as pool:
        ahead: collections.deque[tuple[int, Future]] = collections.deque()
        try:
            for index in indexes:
                ahead.append((index, pool.submit(read, index)))
                if len(ahead) >= AHEAD:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _identity(workdir: str | pathlib.Path, step: int | None) -> tuple[int, str]:
    """The checkpoint's step, and which weights it holds."""
    from synthclip_jax.model.checkpoint_files import checkpoint_digest, find_checkpoint

    folder = find_checkpoint(workdir, step)
    return int(folder.name), checkpoint_digest(folder)


def _digest_of_files(keys: Sequence[str], files: Sequence[pathlib.Path]) -> str:
    stats = ((key, path.stat()) for key, path in zip(keys, files, strict=True))
    return _digest(f"{key}\0{found.st_size}\0{found.st_mtime_ns}" for key, found in stats)


def _digest(texts: Iterable[str]) -> str:
    hasher, count = hashlib.sha256(), 0
    for count, text in enumerate(texts, 1):  # noqa: B007
        hasher.update(f"{len(text)}:{text}".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()[:16] if count else ""


def _renamed(text: str) -> None:
    raise argparse.ArgumentTypeError(f"it is called --part now: --part={text}")


@command("embed")
def main(argv: list[str] | None = None) -> None:
    """Parses the command line and embeds; exits with status 1 and a reason if it cannot."""
    parser = make_parser("synthclip_jax.embed", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run, or a checkpoint's folder")
    parser.add_argument("--images", default="", metavar="DIR|GLOB", help="folder of images, or a pattern in quotes")
    parser.add_argument("--texts", default="", metavar="FILE", help="file with one text per line")
    parser.add_argument("--out", required=True, metavar="F.npz|F.parquet", help="output file")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument("--batch-size", type=int, default=256, help="items encoded at once, over all devices")
    parser.add_argument("--part-size", type=int, default=PART, help=f"items between two commits; default: {PART}")
    parser.add_argument("--part", type=wording.part, default=(0, 1), metavar="I/N", help="process every Nth part only")
    parser.add_argument("--shard", type=_renamed, help=argparse.SUPPRESS)
    parser.add_argument("--redo", action="store_true", help="replace the existing output")
    parser.add_argument(
        "--allow-outside", action="store_true", help="follow links that lead out of the folder of --images"
    )
    given = parser.parse_args(argv)
    embed(
        given.workdir,
        given.out,
        given.images,
        given.texts,
        given.step,
        given.batch_size,
        given.part_size,
        given.part,
        given.redo,
        allow_outside=given.allow_outside,
    )


if __name__ == "__main__":
    main()
