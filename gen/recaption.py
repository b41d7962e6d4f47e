"""Re-captioning: a vision-language model describes each generated image, in words of its own.

Optional: it runs where `gen.recaption.model` names one (the paper's ablation with LLaVA: +9.6 points of image
retrieval). Beside each shard of images lies then SHARD.recaptions, framed like a shard: one text for each record, in
their order, empty where no answer was a caption. What a caption is, `gen.filters.captions` says, as for the captions
that images are drawn from. Training takes them with `data.recaptions`; the dataset itself stays
as it is.

    W/gen/recaption/commits/00000.json
    W/gen/recaption/rejects-00000-of-00008.parquet   record, id, attempt, reason, text
"""

import collections
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gen.engines.chat_templates import template_identity
from gen.engines.interface import VisionEngine
from gen.engines.isolation import check_shard
from gen.engines.registry import make_vision_engine as make_engine
from gen.engines.registry import vision_engine
from gen.filters import captions as filters
from gen.filters.asking import Asked, Asker, Rejects
from gen.shards import draws
from gen.shards.finished_images import finished_images
from gen.shards.local import Executor, Worker, run_local
from gen.shards.plans import PlanMismatch
from gen.shards.store import ShardOutput, StageStore
from gen.shards.tables import parquet
from synthclip_jax.config.schema import Config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.readers.recaptions import SUFFIX
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError, frame_shard, unframe_shard
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX

UNDECODABLE = "undecodable"
_PLANNED = (
    "prompt", "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_new_tokens", "min_words",
    "max_words", "max_attempts",
)  # fmt: skip


class RecaptionWorker(Worker):
    """Describes the images of one shard after another; may be called from `overlap` threads at once.

    Args:
      engine: what answers.
      folder: of the dataset.
      config: the run's configuration.
      begun: says whether there are captions already; asked where a shard has none.
    """

    reports_items = True

    def __init__(
        self, engine: VisionEngine, folder: Location, config: Config, begun: Callable[[], bool] = lambda: False
    ):
        self._begun = begun
        self.engine, self._folder, self.settings, self.seed = engine, folder, config.gen.recaption, config.seed
        self.overlap = engine.shards_at_once(self.settings)
        rules = ("refusal", "length", "one_sentence")
        limits = (self.settings.min_words, self.settings.max_words)
        allowed = filters.CaptionFilters(rules, *limits, language=config.gen.captions.language)
        self._asker = Asker(engine, allowed, self.settings)

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Describes one shard.

        Raises:
          RecordError: a record is damaged; `python -m gen.verify --repair` makes the shard again.
          EngineFailure: the engine raised on every image.
          NothingAcceptedError: no answer was a caption.
        """
        path = self._folder / shard["file"]
        ids, questions = [], []
        rejected: Rejects = {}
        for record, payload in enumerate(unframe_shard(path.read_bytes(), path)):
            if isinstance(payload, RecordError):
                raise payload
            values = parse_example(payload)
            ids.append(values["id"][0].decode())
            image = _decoded(values["image"][0])
            if image is None:
                rejected[record] = UNDECODABLE, 0, ""
            questions.append(self.engine.question(image, self.settings.prompt))
        asked = self._asker(
            len(ids),
            questions.__getitem__,
            lambda record, attempt: draws.bits63(self.seed, ids[record], f"recaption {attempt}"),
            rejected=rejected,
            progress=self.progress,
        )
        texts = {record: text for record, (text, _) in asked.texts.items()}
        check_shard(shard["index"], len(ids), asked.causes)
        filters.check_accepted(
            f"shard {shard['index']}", len(texts), len(ids), asked.causes, self.settings, "gen.recaption", self._begun()
        )
        data, index = frame_shard(texts.get(record, "").encode() for record in range(len(ids)))
        name = f"{DATA_PREFIX}{shard['file']}{SUFFIX}"
        rejects_name = generated.table_name(generated.REJECTS, shard["index"], shard["of"])
        return ShardOutput(
            files={name: data, f"{name}{INDEX_SUFFIX}": index, rejects_name: _rejects_table(ids, asked)},
            count=len(texts),
            rejects=asked.rejects,
            info={"words": sum(filters.word_count(text) for text in texts.values())},
        )

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()


def _decoded(data: bytes) -> Any:
    from synthclip_jax.images.decoding import ImageError, open_image

    try:
        return open_image(data).convert("RGB")
    except ImageError:
        return None


def _rejects_table(ids: Sequence[str], asked: Asked) -> bytes:
    import pyarrow as pa

    records = sorted(asked.rejected)
    columns = {
        "record": pa.array(records, pa.int32()),
        "id": pa.array([ids[record] for record in records], pa.string()),
    }
    return parquet(pa.table({**columns, **asked.reject_columns()}), compression="zstd")


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Runs the stage: describes every shard that is not described yet; nothing where no model is named.

    Returns:
      A summary: captions, words of a caption on average, rejects by reason; empty where no model is named.

    Raises:
      StoreError: images are missing, or the descriptions there were made otherwise.
      ModelNotFound: the model is not where the configuration says.
      NothingAcceptedError: the first shard has no caption.
    """
    settings = config.gen.recaption
    if not settings.model:
        return {}
    engine = vision_engine(settings)
    version, data, shards, digest = finished_images(config, workdir)
    store = StageStore(version.stage_folder("recaption"), data)
    try:
        store.ensure_plan(
            {
                "stage": "recaption",
                "pictures": digest,
                "shards": len(shards),
                "seed": config.seed,
                **{key: settings[key] for key in _PLANNED},
                **template_identity(settings),
                "source": engine.identity(settings),
            }
        )
    except PlanMismatch as error:
        raise StoreError(
            f"{error}\nTo describe these images anew, delete {store.folder}: images and captions stay as they are"
        ) from error
    records = executor(
        store,
        shards,
        lambda: RecaptionWorker(
            make_engine(settings), data, config, lambda: any(record["count"] for record in store.committed().values())
        ),
        label="recaption",
        unit="images",
        gpus=engine.gpus(settings),
        at_once=engine.shards_at_once(settings),
    )
    count = sum(record["count"] for record in records.values())
    rejects = sum((collections.Counter(record["rejects"]) for record in records.values()), collections.Counter())
    if note := filters.hint(rejects, sum(shard["items"] for shard in shards), settings, "gen.recaption"):
        print(note, file=sys.stderr, flush=True)
    return {
        "captions": count,
        "words": sum(record["words"] for record in records.values()) / max(count, 1),
        **{f"rejected {reason}": number for reason, number in rejects.most_common()},
    }
