"""The dataset without the pairs that agree too little: NAME_filtered, beside the whole one, shard by shard."""

from collections.abc import Mapping
from typing import Any

from gen.agreement import open_scores
from gen.images import SPLIT
from gen.shards.executor import Executor, run_local
from gen.shards.store import DATA_PREFIX, PlanMismatch, ShardOutput, StageStore, StoreError
from synthclip_jax.data.readers.agreement import load_scores
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError, ShardName, frame_shard, unframe_shard
from synthclip_jax.files.locations import Location
from synthclip_jax.workdir.versions import Version, dataset_name

LOW_AGREEMENT = "low_agreement"  # the reason that is counted


class FilterWorker:
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


def run(config: Any, version: Version, executor: Executor = run_local) -> tuple[dict[int, dict[str, Any]], int]:
    """Writes every shard that is not there yet.

    Returns:
      The commit records, and how many pairs were left out.

    Raises:
      StoreError: the pairs are not all scored, or the dataset there was filtered otherwise.
    """
    name = dataset_name(config)
    scores, plan = open_scores(version)
    scored = scores.committed()
    if len(scored) < plan["shards"]:
        raise StoreError(
            f"{scores.folder}: {plan['shards'] - len(scored)} of {plan['shards']} shards are not scored yet. Run"
            " --stages=agreement"
        )
    store = StageStore(version.stage_folder("filtered"), version.dataset_folder(name))
    try:
        store.ensure_plan(
            {"stage": "filtered", "scores": scores.plan_digest, "min_score": config.gen.agreement.min_score}
        )
    except PlanMismatch as error:
        raise StoreError(
            f"{error}\nTo filter anew, delete {store.folder} and {store.data_folder}: the whole dataset stays as it is"
        ) from error
    source = scores.data_folder
    shards = [{"index": index, "of": plan["shards"], "items": record["count"]} for index, record in scored.items()]
    min_score = config.gen.agreement.min_score
    records = executor(
        store,
        shards,
        lambda: FilterWorker(source, config.name, name, min_score),
        label="finalize",
        unit="pairs",
    )
    return records, sum(sum(record["rejects"].values()) for record in records.values())
