"""Shards as webdataset tars: ID.jpg, ID.txt, ID.json of each pair, one after the other."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence

from gen.publishing.source import Example, PublishError
from gen.shards import tars
from synthclip_jax.files.locations import Location

ENDING = ".tar"


def file_name(name: str, index: int, of: int) -> str:
    """The file of a shard: its number is the only one in it, as braces and open_clip want it."""
    return f"{name}-train-{index:05d}{ENDING}"


def pattern(name: str) -> str:
    """What all files fit."""
    return f"{name}-train-*{ENDING}"


def write(examples: Iterator[Example], many: bool) -> bytes:
    """The bytes of a shard. Times and owners are zero: the same pairs give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for example in examples:
            about = {key: value for key, value in example._asdict().items() if key not in ("image", "captions")}
            about["caption"] = list(example.captions) if many else example.captions[0]
            text = json.dumps(about, ensure_ascii=False, sort_keys=True)
            for ending, data in (
                ("jpg", example.image),
                ("txt", example.captions[0].encode()),
                ("json", text.encode()),
            ):
                tars.add(tar, f"{example.id}.{ending}", data)
    return buffer.getvalue()


def read(path: Location) -> Iterator[tuple[str, Sequence[str], bytes]]:
    """Id, captions and image of each pair, as `tarfile` reads them; what verification compares."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = iter(tar)
        for image in members:
            parts = [image, next(members, None), next(members, None)]
            data = [_content(tar, part) for part in parts]
            about = json.loads(data[2])
            first = about["caption"][0] if isinstance(about["caption"], list) else about["caption"]
            names = [part.name for part in parts if part]
            if data[1].decode() != first or names != [f"{about['id']}.{ending}" for ending in ("jpg", "txt", "json")]:
                raise PublishError(f"{path}: {image.name}: its text, its JSON or their names do not agree")
            yield about["id"], about["caption"] if isinstance(about["caption"], list) else [first], data[0]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    file = tar.extractfile(member) if member else None
    return file.read() if file else b""
