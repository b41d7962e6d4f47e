"""Webdataset tars: members KEY.jpg|png|webp|... beside KEY.txt or KEY.json, wherever in the tar they lie.

What a tar holds beside whole examples is counted by cause. Incomplete examples (no image, no caption, two members of
one name, a link that leads to nothing) are damage: an error at opening, or left out, as `config.data.on_error` says.
Hidden files and members that belong to no example are passed over.

Examples are read in any order, which takes a plain tar on this machine. One in an object store (s3://, gs://) is
copied, one that is compressed (gzip, bzip2, xz) unpacked, once, into the cache (`copies`): inside gzip there is no way
to one image but through all before it.
"""

import functools
import hashlib
import json
import os
import pathlib
import stat

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import captions, copies
from synthclip_jax.data.readers.joined import Joined
from synthclip_jax.data.readers.offsets import cached_offsets, digest_of_files
from synthclip_jax.data.readers.patterns import COMPRESSED, TARS, find_files
from synthclip_jax.data.readers.reader import (
    IMAGE_KEYS,
    Opening,
    Sample,
    Shard,
    damage_report,
    keys_of,
    missing_key,
    open_files,
)
from synthclip_jax.data.readers.tar_examples import Grouped, group
from synthclip_jax.data.readers.tar_scan import REMEDY, Member, scan_tar
from synthclip_jax.data.records import RandomAccessFile, RecordError
from synthclip_jax.files.locations import Location, is_url, location
from synthclip_jax.left_out import LeftOut


class TarReader:
    """Images and captions of all tars, in the order of their names, those of a tar in the order of first members."""

    def __init__(self, spec: SourceSpec, how: Opening):
        """Reads the offsets of all members: by hopping from header to header the first time, later from their index.

        Raises:
          RecordError: there is no tar, or (`raise`) some are missing or cut off, or hold incomplete
            examples; all of them are named.
          MissingKey: no example has the image or the caption that the keys name.
        """
        self.place, self.left_out, self._lenient = spec.place, LeftOut(), how.on_error == "skip"
        self._image_keys = keys_of(spec.image_key, "image", IMAGE_KEYS)
        self._caption_keys = keys_of(spec.caption_key, "caption", ("txt", "json.caption"))

        def open_tar(path: str | os.PathLike) -> _Tar:
            return _Tar(path, self._image_keys, self._caption_keys, how.fresh)

        paths, missing = find_files(spec.place, TARS, self.left_out)
        copies.check_room((path for path in paths if is_url(path) or path.name.lower().endswith(COMPRESSED)), "tar")
        self._tars, faults = open_files(spec.place, paths, open_tar, missing, how, self.left_out)
        self._joined = Joined(self._tars)
        found = [tar.found for tar in self._tars]
        for what, keys, there in (
            ("image", self._image_keys, any(tar.images for tar in found)),
            ("caption", self._caption_keys, any(tar.captions for tar in found)),
        ):
            # A key that no example has is a wrong key; one that some lack is their fault.
            if not there and any(tar.images or tar.captions for tar in found):
                extensions = {extension for tar in found for extension in tar.extensions}
                raise missing_key(spec.place, keys, extensions, what)
        incomplete = [f"{tar.path}: {line}" for tar in self._tars for line in tar.found.faults.lines("incomplete")]
        if incomplete and how.on_error == "raise":
            raise RecordError(damage_report(spec.place, incomplete, f"faults in {len(self._tars)} tars"))
        self.faults = [*faults, *incomplete]
        for tar in self._tars:
            for account in (tar.found.faults, tar.found.passed):
                self.left_out.update(account)
            if not len(tar) and not tar.found.faults:
                self.left_out.add("tar without an example", tar.path, unit="files")
            tar.found = tar.found._replace(faults=LeftOut(), passed=LeftOut())

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Sample:
        """The sample. See `Reader`."""
        tar, sample = self._joined.locate(index)
        image, caption, key = tar.read(sample)
        if image is None or caption is None:
            what = "image" if image is None else "caption"
            raise RecordError(f"{self.where(index)}: the tar ends inside its {what}. {REMEDY}")
        where = functools.partial(self.where, index)
        if not self._is_json(key):
            return Sample(image, *captions.usable([caption.strip()], where))
        value = captions.parse_json(caption, where)
        _, _, field = self._caption_keys[key].partition(".")
        for name in field.split("."):
            there = value if isinstance(value, dict) else {}
            if name not in there:
                names = (f"json.{key}" for key in there)
                raise missing_key(where(), [self._caption_keys[key]], names)
            value = there[name]
        texts = value if isinstance(value, list) else [value]
        return Sample(image, *captions.usable(texts, where, self._lenient))

    def _is_json(self, key: int) -> bool:
        extension, _, field = self._caption_keys[key].partition(".")
        return extension == "json" and bool(field)

    def where(self, index: int) -> str:
        tar, sample = self._joined.locate(index)
        return f"{tar.path}: example {sample} ({tar.key(sample)})"

    def concept(self, index: int) -> str:
        return ""

    def shards(self) -> list[Shard]:
        return self._joined.shards()

    def digest(self) -> str:
        names = "".join(f"{pathlib.Path(t.path).name} {len(t)} {os.path.getsize(t.plain)}\n" for t in self._tars)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def content_digest(self) -> str:
        return digest_of_files([(str(tar.plain), tar.found.table.tobytes()) for tar in self._tars])


class _Tar:
    """Where the examples of one tar lie.

    Attributes:
      path: as the config has it.
      plain: where its bytes are read: itself, or its copy.
    """

    def __init__(
        self,
        path: str | os.PathLike | Location,
        image_keys: tuple[str, ...],
        caption_keys: tuple[str, ...],
        fresh: bool,
    ):
        self.path, self._keys = str(path), (image_keys, caption_keys)
        self.plain = copies.plain_tar(path, _magic(path))
        self._file = RandomAccessFile(self.plain)
        self.found = self._group(fresh)._replace(keys=[])

    def _group(self, fresh: bool) -> Grouped:
        try:
            members = tar_members(self.plain, fresh)
        except RecordError as error:  # which names the copy
            raise RecordError(str(error).replace(str(self.plain), self.path, 1)) from error
        return group(members, *self._keys, pathlib.Path(self.path).name)

    def __len__(self) -> int:
        return len(self.found.table)

    def key(self, sample: int) -> str:
        """What an example is called: looked up only where an error names it, since all names take much memory."""
        if not self.found.keys:
            self.found = self.found._replace(keys=self._group(fresh=False).keys)
        return self.found.keys[sample] if sample < len(self.found.keys) else "?"

    def read(self, sample: int) -> tuple[bytes | None, bytes | None, int]:
        """Bytes of the image and of the caption (None: the tar is too short), and the number of the caption's key."""
        image, image_length, caption, caption_length, key = self.found.table[sample].tolist()
        return self._bytes(image, image_length), self._bytes(caption, caption_length), key

    def _bytes(self, offset: int, length: int) -> bytes | None:
        data = self._file.read(offset, length)
        return data if len(data) == length else None


def _magic(path: str | os.PathLike | Location) -> bytes:
    """The first bytes of a file, which say if it is compressed."""
    if not is_url(path) and not stat.S_ISREG(os.stat(path).st_mode):
        return b""  # opening a pipe would wait for ever; the scan refuses it
    with location(path).open("rb") as file:
        return file.read(6)


def tar_members(path: str | os.PathLike, fresh: bool = False) -> list[Member]:
    """Everything in a tar but folders, from the index kept of it or by `scan_tar`.

    Args:
      fresh: by `scan_tar`, whatever is kept.

    Raises:
      RecordError: the archive is damaged or cut off.
    """
    try:
        return _parse(cached_offsets(path, _scan, fresh))
    except (ValueError, TypeError):
        if fresh:
            raise
        return tar_members(path, fresh=True)  # the index fits the tar and is none of ours


def _scan(path: str | os.PathLike) -> bytes:
    return json.dumps(scan_tar(path)).encode()


def _parse(offsets: bytes) -> list[Member]:
    members = [Member(*row) for row in json.loads(offsets)]
    if not all(isinstance(m.offset, int) and isinstance(m.length, int) and min(m[:2]) >= 0 for m in members):
        raise ValueError
    return members
