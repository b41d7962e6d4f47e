"""The dataset without the pairs that agree too little: NAME_filtered, beside the whole one, shard by shard."""

from typing import Any

from gen.agreement import open_scores
from gen.filters.agreement import FilterWorker
from gen.shards.local import Executor, run_local
from gen.shards.plans import PlanMismatch
from gen.shards.store import StageStore
from synthclip_jax.config.schema import Config
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir.versions import Version, dataset_name


def run(config: Config, version: Version, executor: Executor = run_local) -> tuple[dict[int, dict[str, Any]], int]:
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
