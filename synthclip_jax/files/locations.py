"""Where files lie: on a disk of this machine, on network storage that is mounted, or in an object store by its URL.

A place is given as text: a path, or a URL such as `s3://bucket/folder` or `gs://bucket/folder` (any that fsspec
knows). `location` makes an object of it that both kinds share: `/`, `name`, `parent`, `exists`, `read_bytes`, `open`,
`iterdir`, `glob`. Credentials and endpoints are those of the environment (`AWS_ENDPOINT_URL` names another S3 server).
"""

import argparse
import os
import pathlib
import re
from typing import Any

from synthclip_jax.errors import UserError

# A `pathlib.Path`, or a `upath.UPath` that behaves like one: the package is only there for those who use URLs.
Location = Any
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")  # two letters at least: c:/ is a drive
# A URL, also with a slash too few (s3:/bucket), which would be a folder called `s3:`.
_BUCKET = re.compile(r"(?!file://)([a-zA-Z][a-zA-Z0-9+.-]+(?=://)|(?:s3a?|gs|gcs|abfss?|az|hdfs|https?|ftp)(?=:/))")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class LocationError(UserError, ValueError):
    """A URL that cannot be used as given; the text says what to do."""


def is_url(place: str | os.PathLike | Location) -> bool:
    """Whether a place is in an object store, and not in this machine's file system."""
    return not isinstance(place, pathlib.PurePath) and bool(_URL.match(str(place)))


def location(place: str | os.PathLike | Location) -> Location:
    """The path or URL as an object; nothing is looked up.

    Raises:
      LocationError: the package that reads such URLs is not installed, or there is none.
    """
    if not is_url(place):
        return pathlib.Path(os.path.expanduser(place))
    if not isinstance(place, str):
        return place
    protocol, _, rest = place.partition("://")
    if protocol == "file":
        return pathlib.Path(rest)
    try:
        from upath import UPath

        # Listings are not kept: another process may write to the same folder at any time.
        path = UPath(place, use_listings_cache=False)
        path.fs  # noqa: B018  # the package for this protocol is imported here
        return path
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = (
            f"pip install 'synthclip_jax[{extra}]'" if extra else "pip install universal_pathlib and what it asks for"
        )
        raise LocationError(f"{place}: reading {protocol}:// needs an additional package: {remedy} ({error})") from None
    except ValueError as error:
        raise LocationError(f"{place}: not a URL that fsspec knows ({error})") from None


def local_path(place: str | os.PathLike) -> pathlib.Path:
    """A path in the file system, `~` resolved: for what is written bit by bit, locked, or read in place.

    Raises:
      LocationError: it is in an object store.
    """
    if bucket := _BUCKET.match(str(place)):
        raise LocationError(
            f"{place}: training, and what reads checkpoints, works in a folder on a disk or on mounted network storage,"
            f" not on {bucket[1]}://. Name a folder: mount the bucket (gcsfuse, mount-s3), or copy the run"
        )
    return pathlib.Path(os.path.expanduser(str(place).removeprefix("file://")))


def cache_folder() -> pathlib.Path:
    """Where files lie that are made again if they are lost: `$SYNTHCLIP_CACHE`, by default ~/.cache/synthclip_jax."""
    usual = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "synthclip_jax"
    return pathlib.Path(os.environ.get("SYNTHCLIP_CACHE") or usual).expanduser()


def place(text: str) -> Location:
    """`location` for argparse, which would swallow the remedy in the text of a `ValueError`."""
    try:
        return location(text)
    except LocationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size_of(place: str | os.PathLike | Location) -> int:
    """Bytes of a file.

    Raises:
      FileNotFoundError: there is none.
    """
    path = location(place)
    return path.fs.size(path.path) if is_url(path) else os.path.getsize(path)


def parquet_source(place: str | os.PathLike | Location) -> Any:
    """What `pyarrow.parquet` reads a file from: its path, or in an object store an open file."""
    path = location(place)
    return path.open("rb") if is_url(path) else path
