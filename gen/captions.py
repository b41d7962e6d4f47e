"""Captions: a language model writes `per_concept` captions for every concept of the bank.

    W/gen/captions/captions-00000-of-00008.parquet   id, concept_id, concept, caption_index, caption, attempt
    W/gen/captions/rejects-00000-of-00008.parquet    id, concept_id, concept, attempt, reason, text

A shard is a range of ids: all captions of one concept, then of the next, so that equal prompts meet in a batch. An
answer that is no caption is asked for again with another seed, up to `max_attempts` times, and then rejected with the
last reason. A first shard without one caption ends the stage before it is committed. The concept that was asked for is
kept with the caption (the reference drops it). Captions are committed once and never made again: an engine need not be
able to repeat itself.
"""

import collections
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gen.concepts import Bank, Concept, load_bank
from gen.engines.chat_templates import Conversation, template_identity
from gen.engines.interface import CaptionEngine
from gen.engines.isolation import check_shard
from gen.engines.registry import caption_engine
from gen.engines.registry import make_caption_engine as make_engine
from gen.filters import captions as filters
from gen.filters.asking import Asker
from gen.shards import draws
from gen.shards.local import Executor, Worker, run_local
from gen.shards.store import ShardOutput, StageStore
from gen.shards.tables import parquet, read_columns
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import list_files
from synthclip_jax.left_out import LeftOut
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import stage_folder

# What the texts depend on beside the engine. How fast they come (batch size, device) may change between two runs.
_PLANNED = (
    "system", "prompt", "examples", "per_concept", "concepts_per_caption", "temperature", "top_p", "presence_penalty",
    "frequency_penalty",
    "max_new_tokens", "filters", "min_words", "max_words", "refusals", "language", "max_attempts", "shard_size",
)  # fmt: skip


class CaptionError(UserError, ValueError):
    """No caption can be made as configured; the text says what to look at."""


class EmptyLLMError(CaptionError):
    """The language model answers with nothing."""


class CaptionWorker(Worker):
    """Writes the captions of one shard after another; may be called from `overlap` threads at once.

    Args:
      engine: what answers.
      bank: the concepts.
      config: the run's configuration.
      begun: says whether there are captions already; asked where a shard has none.
    """

    reports_items = True

    def __init__(self, engine: CaptionEngine, bank: Bank, config: Config, begun: Callable[[], bool] = lambda: False):
        self.engine, self.bank, self.captions, self.seed = engine, bank, config.gen.captions, config.seed
        self._begun = begun
        self.overlap = engine.shards_at_once(self.captions)
        self._asker = Asker(engine, filters.CaptionFilters.of(self.captions), self.captions)

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Makes one shard.

        Raises:
          EmptyLLMError: every answer was empty.
          NothingAcceptedError: no answer was a caption.
          EngineFailure: the engine raised on every question.
        """
        start = shard["index"] * self.captions.shard_size
        # Of each item: concept, number of its caption.
        items = [divmod(number, self.captions.per_concept) for number in range(start, start + shard["items"])]
        asked = self._asker(
            len(items),
            lambda slot: self._question(items[slot]),
            lambda slot, attempt: draws.bits63(self.seed, self._id(items[slot]), f"caption {attempt}"),
            lambda slot: self._concept(items[slot]).text,
            progress=self.progress,
        )
        answers = asked.answers
        check_shard(shard["index"], len(items), asked.causes)
        if answers[filters.EMPTY] == answers.total():
            raise EmptyLLMError(
                f"the language model {self.captions.model!r} answered all {answers.total():,} questions of shard"
                f" {shard['index']} with nothing. Check that gen.captions.model is an instruction-tuned model whose"
                " tokenizer has a chat template, that gen.captions.dtype fits it (float16 overflows in some), and that"
                " gen.captions.max_new_tokens is not too small; shards committed before are kept"
            )
        filters.check_accepted(
            f"shard {shard['index']}",
            len(asked.texts),
            len({concept for concept, _ in items}),
            asked.causes,
            self.captions,
            "gen.captions",
            self._begun(),
        )
        of_rejected = self._identity([items[slot] for slot in sorted(asked.rejected)])
        tables = {
            generated.CAPTIONS: self._captions_table(items, asked.texts),
            generated.REJECTS: self._parquet(of_rejected | asked.reject_columns()),
        }
        return ShardOutput(
            files={generated.table_name(kind, shard["index"], shard["of"]): table for kind, table in tables.items()},
            count=len(asked.texts),
            rejects=asked.rejects,
            info={"answers": dict(sorted(answers.items()))},
        )

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()

    def _question(self, item: tuple[int, int]) -> Conversation:
        others = [self.bank.concepts[other].text for other in self._others(item)]
        return self.engine.conversation(self.captions, self._concept(item).text, others)

    def _concept(self, item: tuple[int, int]) -> Concept:
        return self.bank.concepts[item[0]]

    def _others(self, item: tuple[int, int]) -> list[int]:
        count = self.captions.concepts_per_caption - 1
        return draws.others(self.seed, self._id(item), item[0], count, len(self.bank.concepts)) if count else []

    def _id(self, item: tuple[int, int]) -> str:
        return f"{item[0]:06d}-{item[1]:04d}"

    def _captions_table(self, items: Sequence[tuple[int, int]], accepted: Mapping[int, tuple[str, int]]) -> bytes:
        import pyarrow as pa

        slots = sorted(accepted)
        return self._parquet(
            {
                **self._identity([items[slot] for slot in slots]),
                "caption_index": pa.array([items[slot][1] for slot in slots], pa.int32()),
                "caption": pa.array([accepted[slot][0] for slot in slots], pa.string()),
                "attempt": pa.array([accepted[slot][1] for slot in slots], pa.int32()),
                # Concepts that were asked for as well; whether the caption names them is for matching to find.
                "others": pa.array([self._others(items[slot]) for slot in slots], pa.list_(pa.int32())),
            }
        )

    def _identity(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        import pyarrow as pa

        concepts = [self._concept(item) for item in items]
        return {
            "id": pa.array([self._id(item) for item in items], pa.string()),
            "concept_id": pa.array([concept.id for concept in concepts], pa.int32()),
            "concept": pa.array([concept.text for concept in concepts], pa.string()),
        }

    def _parquet(self, columns: Mapping[str, Any]) -> bytes:
        import pyarrow as pa

        table = pa.table(dict(columns)).replace_schema_metadata({"bank_digest": self.bank.digest})
        return parquet(table, compression="zstd")


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Runs the stage: makes every shard that is not there yet.

    Returns:
      A summary: captions, the share of answers that were accepted, rejects by reason.

    Raises:
      CaptionError, NothingAcceptedError: the language model gives nothing, or nothing that is a caption.
      PlanMismatch: the workdir was made with another configuration.
    """
    captions = config.gen.captions
    bank = load_bank(workdir, config.gen.version)
    digest, total = bank.digest, len(bank.concepts) * captions.per_concept
    del bank
    of, engine = -(-total // captions.shard_size), caption_engine(captions)
    store = StageStore(stage_folder(workdir, "captions", config.gen.version))
    store.ensure_plan(
        {
            "stage": "captions",
            "bank": digest,
            "seed": config.seed,
            "captions": total,
            "shards": of,
            **{key: captions[key] for key in _PLANNED},
            **template_identity(captions),
            "source": engine.identity(captions),
        }
    )
    shards = [
        {"index": index, "of": of, "items": min(captions.shard_size, total - index * captions.shard_size)}
        for index in range(of)
    ]
    load = functools.partial(load_bank, workdir, config.gen.version)
    records = executor(
        store,
        shards,
        # Where the worker is, it reads the bank itself: it may be on another machine.
        lambda: CaptionWorker(
            make_engine(captions),
            load(),
            config,
            lambda: any(record["count"] for record in store.committed().values()),
        ),
        label="captions",
        unit="captions",
        gpus=engine.gpus(captions),
        at_once=engine.shards_at_once(captions),
    )
    count = sum(record["count"] for record in records.values())
    rejects = sum((collections.Counter(record["rejects"]) for record in records.values()), collections.Counter())
    answers = sum((collections.Counter(record["answers"]) for record in records.values()), collections.Counter())
    reasons = {f"rejected {reason}": number for reason, number in rejects.most_common()}
    if note := filters.hint(rejects, total, captions, "gen.captions"):
        print(note, file=sys.stderr, flush=True)
    if not count:
        raise CaptionError(
            f"{store.folder}: none of {total:,} captions was accepted ({reasons}). See rejects-*.parquet there for the"
            f" answers, and start again in another --workdir. {filters.advice(rejects, captions, 'gen.captions')}"
        )
    names = [name for record in records.values() for name in record["files"]]
    # A repair that keeps what is there has fewer files than records at this point, and says itself what it did.
    whole = set(names) <= list_files(store.folder).keys()
    left_out = _without_captions([store.path(name) for name in names if whole], load)
    for line in left_out.lines():
        print(f"captions: {line}", flush=True)
    without = {"concepts without": left_out.count} if left_out else {}
    accepted = answers["accepted"] / max(answers.total(), 1)
    return {"captions": count, "shards": of, "answers accepted": accepted, **without, **reasons}


def _without_captions(paths: Sequence[Location], load: Callable[[], Bank]) -> LeftOut:
    """The concepts for which no caption was accepted; none where there is no file to look into."""
    if not paths:
        return LeftOut("concepts")
    found = [read_columns(path, ["concept_id"])["concept_id"].to_numpy() for path in paths if "captions-" in path.name]
    concepts = load().concepts
    missing = np.setdiff1d(np.arange(len(concepts)), np.concatenate([np.zeros(0, np.int32), *found]))
    left_out = LeftOut("concepts")
    for concept in missing.tolist():
        left_out.add("no caption was accepted for them", concepts[concept].text)
    return left_out
