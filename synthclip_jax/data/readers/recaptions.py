"""Captions that a vision-language model wrote beside the shards of a generated dataset, as captions to train on."""

import bisect
import hashlib
from collections.abc import Sequence

from synthclip_jax.data.readers import captions
from synthclip_jax.data.readers.offsets import digest_of_files
from synthclip_jax.data.readers.reader import Reader, Sample, Shard
from synthclip_jax.data.records import FOOTER_BYTES, HEADER_BYTES, IndexedShard, RecordError
from synthclip_jax.left_out import LeftOut

SUFFIX = ".recaptions"  # after the name of a shard; written by gen.recaption: framed like a shard, a text per record


def recaptioned(reader: Reader, use: str, check_crc: bool = True) -> Reader:
    """A reader with those captions: `none`, `instead` of its own where there are any, or `both`.

    Raises:
      RecordError: a shard has none, or not as many as records.
    """
    return reader if use == "none" else Recaptioned(reader, use == "both", check_crc)


class Recaptioned:
    """A reader whose captions are those, or those and its own. An image that was left without has its own alone."""

    def __init__(self, reader: Reader, both: bool, check_crc: bool):
        self.reader, self._both = reader, both
        self._texts: list[IndexedShard] = []
        self._places: list[Shard] = list(reader.shards())
        for name, examples in self._places:
            try:
                texts = IndexedShard(f"{name}{SUFFIX}", check_crc)
            except FileNotFoundError:
                raise RecordError(
                    f"{name}{SUFFIX}: no captions by a vision-language model. Write them first (python -m gen"
                    " --stages=recaption --config.gen.recaption.model=...), or leave config.data.recaptions at none"
                ) from None
            if len(texts) != len(examples):
                raise RecordError(
                    f"{name}{SUFFIX}: {len(texts)} captions for {len(examples)} records. Run --stages=recaption again"
                )
            self._texts.append(texts)
        self._ends = [examples.stop for _, examples in self._places]
        # A record without a text holds only its framing.
        without = sum(int((shard.index[:, 1] == HEADER_BYTES + FOOTER_BYTES).sum()) for shard in self._texts)
        self._left_out = LeftOut("captions")
        if without:
            self._left_out.add("none by the model, so that the image has its own", reader.place, without)

    @property
    def place(self) -> str:
        return self.reader.place

    @property
    def left_out(self) -> LeftOut:
        return LeftOut.total([self.reader.left_out, self._left_out])

    @property
    def faults(self) -> Sequence[str]:
        return self.reader.faults

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        """See `Reader`."""
        sample = self.reader[index]
        shard = bisect.bisect_right(self._ends, index)
        text = self._texts[shard][index - self._places[shard].examples.start]
        if not text:
            return sample
        written, _ = captions.usable([text], f"{self._places[shard].name}{SUFFIX}: {self.where(index)}")
        return sample._replace(captions=(*sample.captions, *written) if self._both else written)

    def where(self, index: int) -> str:
        return self.reader.where(index)

    def concept(self, index: int) -> str:
        return self.reader.concept(index)

    def shards(self) -> Sequence[Shard]:
        return self.reader.shards()

    def digest(self) -> str:
        return hashlib.sha256(f"{self.reader.digest()} recaptions {self._both}".encode()).hexdigest()[:16]

    def content_digest(self) -> str:
        texts = digest_of_files([(shard.path, shard.index.tobytes()) for shard in self._texts])
        return hashlib.sha256(f"{self.reader.content_digest()} {texts} {self._both}".encode()).hexdigest()[:16]
