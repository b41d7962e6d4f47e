"""Embeds pictures and texts: unit vectors of a checkpoint, in one file.

    python -m synthclip_jax.embed --workdir=W --images=DIR --texts=captions.txt --out=vectors.npz
    python -m synthclip_jax.embed --workdir=W --images='photos/**/*.jpg' --out=vectors.parquet [--shard=0/4]

Pictures are all those below a folder, or what a pattern finds; texts are the lines of a file. The `.npz` holds `images`
and `image_keys`, `texts` and `text_keys` (line numbers), and the keys of what does not decode in `image_skipped`; a
`.parquet` has the columns kind, key and embedding. Rows have the order of the names, or of the lines.

The work is spread over all devices; --shard=I/N takes every Nth part only, for several machines on one file system. A
run that was ended early continues where it was: parts are committed one by one (OUT.parts) and joined at the end.
"""

import argparse
import collections
import glob
import hashlib
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from synthclip_jax.embeddings import EmbeddingError, Part, Parts
from synthclip_jax.errors import command

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
READERS = 16  # files opened at once: on network storage that is mostly waiting
AHEAD = 1024  # files read ahead of the decoding
PART = 8192  # items: what an interruption can cost


def find_pictures(place: str) -> tuple[list[str], list[pathlib.Path]]:
    """Keys and files of the pictures in a folder, or of those that a pattern finds, in the order of their names.

    Raises:
      EmbeddingError: there are none.
    """
    root = pathlib.Path(place).expanduser()
    if root.is_dir():
        walked = (pathlib.Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names)
        files = sorted(path for path in walked if path.suffix.lower() in EXTENSIONS)
        keys = [path.relative_to(root).as_posix() for path in files]
    else:
        files = sorted(pathlib.Path(path) for path in glob.glob(str(root), recursive=True) if os.path.isfile(path))
        keys = [path.as_posix() for path in files]
    if not files:
        what = f"pictures ({', '.join(EXTENSIONS)}) in this folder" if root.is_dir() else "file of this name or pattern"
        raise EmbeddingError(f"--images={place}: no {what}")
    return keys, files


def read_texts(place: str | pathlib.Path) -> list[str]:
    """The lines of a file; an empty line is a text as well.

    Raises:
      EmbeddingError: it cannot be read, or is empty.
    """
    try:
        texts = pathlib.Path(place).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmbeddingError(f"--texts={place}: cannot be read as UTF-8 text ({error})") from error
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
    shard: tuple[int, int] = (0, 1),
    redo: bool = False,
    log: Any = print,
) -> bool:
    """Embeds pictures and texts into a file.

    Args:
      workdir: a workdir, or one checkpoint's folder.
      images: folder or pattern; empty: none.
      texts: file of lines; empty: none.
      part_size: items between two commits.
      shard: (which, of how many): only every so manieth part.
      redo: replace what is in `out`.

    Returns:
      Whether the file is complete; with several shards the last one completes it.

    Raises:
      EmbeddingError: nothing to embed, or `out` holds something else.
      EvaluationError: the embeddings are not finite.
      CheckpointError: there is no such checkpoint.
    """
    if not images and not texts:
        raise EmbeddingError("nothing to embed: give --images, --texts or both")
    keys, files = find_pictures(images) if images else ([], [])
    lines = read_texts(texts) if texts else []
    counts = {kind: len(items) for kind, items in (("images", files), ("texts", lines)) if items}
    checkpoint, digest = _identity(workdir, step)
    plan = {"step": checkpoint, "checkpoint": digest, "images": _digest_of_files(keys, files)}
    plan["texts"] = _digest(lines)
    parts = Parts(out, counts, part_size, plan)
    if parts.claim(redo):
        log(f"{out}: everything is there")
        return True
    todo = {kind: [item for item in parts.missing(kind) if item[0] % shard[1] == shard[0]] for kind in counts}
    left = sum(len(indexes) for items in todo.values() for _, indexes in items)
    if left < sum(counts.values()):
        log(f"{sum(counts.values()) - left:,} of {sum(counts.values()):,} are there already or another shard's")
    if left:
        from synthclip_jax.encoder import load_encoder

        encoder = load_encoder(workdir, checkpoint, batch_size)
        for number, indexes in todo.get("texts", []):
            vectors = encoder.texts([lines[index] for index in indexes])
            parts.write("texts", number, Part(np.array(indexes), vectors, np.zeros(0, np.int64)))
        if todo.get("images"):
            _embed_pictures(encoder, files, parts, todo["images"], log)
    missing = [parts.path(kind, number).name for kind in counts for number, _ in parts.missing(kind)]
    if missing:
        log(f"{len(missing)} parts are left to the other shards: {', '.join(missing[:3])}...")
        return False
    names = {"images": keys, "texts": [str(number) for number in range(len(lines))]}
    skipped = parts.join(names, keep=shard[1] > 1)
    for kind, count in counts.items():
        lost = f", {skipped[kind]:,} do not decode and have none" if skipped[kind] else ""
        log(f"{out}: {count - skipped[kind]:,} vectors of {kind}{lost}")
    return True


def _embed_pictures(
    encoder: Any, files: Sequence[pathlib.Path], parts: Parts, todo: Sequence[tuple[int, range]], log: Any
) -> None:
    """One stream over all parts, so that the device need not wait between them; a thread of its own writes them."""
    wanted = [index for _, indexes in todo for index in indexes]
    waiting = collections.deque(todo)
    found: dict[int, np.ndarray] = {}
    lost: set[int] = set()
    started = reported = time.monotonic()
    done = 0
    with ThreadPoolExecutor(1) as writer:
        writing: collections.deque[Future] = collections.deque()
        for batch in encoder.pictures(_read_ahead(wanted, files)):
            found.update(zip(batch.keys, batch.embeddings, strict=True))
            lost.update(batch.skipped)
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
                log(f"{done:,} of {len(wanted):,} pictures, {rate:,.0f}/s, {(len(wanted) - done) / rate:,.0f} s left")
        for future in writing:
            future.result()


def _read_ahead(indexes: Iterable[int], files: Sequence[pathlib.Path]) -> Iterator[tuple[int, bytes]]:
    """Files by their index, read by threads; one that cannot be read is empty, and does not decode."""

    def read(index: int) -> bytes:
        try:
            return files[index].read_bytes()
        except OSError:
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
    """The checkpoint's step, and a digest of its files (of the checksums beside them)."""
    from synthclip_jax.checkpoint import CHECKSUMS, find_checkpoint

    folder = find_checkpoint(workdir, step)
    sums = folder / CHECKSUMS
    return int(folder.name), hashlib.sha256(sums.read_bytes()).hexdigest()[:16] if sums.exists() else ""


def _digest_of_files(keys: Sequence[str], files: Sequence[pathlib.Path]) -> str:
    return _digest(f"{key}\0{path.stat().st_size}" for key, path in zip(keys, files, strict=True))


def _digest(texts: Iterable[str]) -> str:
    hasher, count = hashlib.sha256(), 0
    for count, text in enumerate(texts, 1):  # noqa: B007
        hasher.update(f"{len(text)}:{text}".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()[:16] if count else ""


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 0 to N-1, such as 0/4")
    return int(match[1]), int(match[2])


@command("embed")
def main(argv: list[str] | None = None) -> None:
    """Parses the command line and embeds; exits with status 1 and a reason if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m synthclip_jax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run, or a checkpoint's folder")
    parser.add_argument("--images", default="", metavar="DIR|GLOB", help="folder, or a pattern in quotes")
    parser.add_argument("--texts", default="", metavar="FILE", help="one text a line")
    parser.add_argument("--out", required=True, metavar="F.npz|F.parquet", help="the file to write")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--batch-size", type=int, default=256, help="items encoded at once, over all devices")
    parser.add_argument("--part-size", type=int, default=PART, help=f"items between two commits; default: {PART}")
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="every Nth part only")
    parser.add_argument("--redo", action="store_true", help="replace what is there")
    given = parser.parse_args(argv)
    embed(
        given.workdir,
        given.out,
        given.images,
        given.texts,
        given.step,
        given.batch_size,
        given.part_size,
        given.shard,
        given.redo,
    )


if __name__ == "__main__":
    main()
