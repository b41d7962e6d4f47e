"""The filter by agreement: which pairs of a shard score high enough."""

from collections.abc import Mapping
from typing import Any

from gen.shards.finished_images import SPLIT
from gen.shards.local import Worker
from gen.shards.store import ShardOutput
from synthclip_jax.data.readers.agreement import load_scores
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError, ShardName, frame_shard, unframe_shard
from synthclip_jax.files.locations import Location
from synthclip_jax.workdir.generated import DATA_PREFIX

LOW_AGREEMENT = "low_agreement"  # the reason that is counted


class FilterWorker(Worker):
    """Copies the pairs of one shard after another that score high enough."""

    def __init__(self, source: Location, whole: str, name: str, min_score: float):
        self._source, self._whole, self._name, self._min_score = source, whole, name, min_score

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Copies one shard."""
        path = self._source / str(ShardName(self._whole, SPLIT, shard["index"], shard["of"]))
        payloads = list(unframe_shard(path.read_bytes(), path))
        kept = []
        for payload, score in zip(payloads, load_scores(str(path), len(payloads)), strict=True):
            if isinstance(payload, RecordError):
                raise payload
            if score >= self._min_score:
                kept.append(payload)
        data, index = frame_shard(kept)
        name = f"{DATA_PREFIX}{ShardName(self._name, SPLIT, shard['index'], shard['of'])}"
        dropped = len(payloads) - len(kept)
        return ShardOutput(
            files={name: data, f"{name}{INDEX_SUFFIX}": index},
            count=len(kept),
            rejects={LOW_AGREEMENT: dropped} if dropped else {},
        )
