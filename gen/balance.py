"""Balance: which captions are kept, so that frequent concepts do not drown the rare ones (MetaCLIP, arXiv 2309.16671).

A map over caption shards finds the concepts in each caption (`matches-*.parquet`, committed per shard), on all cores or
on the executor's machines; a reduction drops repeated captions, and nearly repeated ones if asked to, counts concepts,
settles the threshold t, prints what other thresholds would keep, and only then writes

    W/gen/balance/selected.parquet     the captions kept, in the order of ids, with the concepts found in them
    W/gen/balance/counts_before.npy    captions per concept before balancing, int64; counts_after.npy: after
    W/gen/balance/balance.json         threshold, totals, rejects by reason, keep-rate curve; written last

Captions in which no concept is found are dropped, as in MetaCLIP, even if they were made for one: a concept that is
only found in another form ("Cats" for `cat`) does not count.
"""

import concurrent.futures
import functools
import hashlib
import io
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from gen.concepts import load_bank, read_meta
from gen.matching.files import SIGNATURE, MatchFiles
from gen.matching.matcher import Matcher
from gen.matching.near_duplicates import signatures
from gen.matching.selected import selected_writer
from gen.matching.selection import BalanceError, select
from gen.shards.draws import uniforms
from gen.shards.local import Executor, Worker, run_local
from gen.shards.plans import PlanMismatch, differences, read_json
from gen.shards.store import ShardOutput, StageStore, sha256
from gen.shards.tables import parquet, read_columns
from synthclip_jax.config.generation import Balance
from synthclip_jax.config.schema import Config
from synthclip_jax.devices.cores import core_count
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError, write_atomic, write_stream
from synthclip_jax.text.presence import normalise
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import plan_digest
from synthclip_jax.workdir.versions import stage_folder

WORTH_A_PROCESS = 100_000  # captions: to match them takes about as long as to start a process and read the bank there
_matcher_here: "MatchWorker | None" = None  # of a process that matches for another


class MatchWorker(Worker):
    """Finds the concepts in the captions of one shard after another.

    Everything it is built from can be sent to another process or machine; the bank is read where the worker is built.

    Args:
      workdir, version: whose captions and bank.
      seed: of the run; a caption's draw depends on it and on the caption's id alone.
      fold_case: see `Matcher`.
      language: of the captions; None: in a workdir from before there were others, texts are matched as they stand.
      near_duplicates: also stores what alike captions are found by.
      processes: above 1, shards are matched by so many processes; they are given as many at once.
    """

    def __init__(
        self,
        workdir: Location,
        version: str,
        seed: int,
        fold_case: bool,
        near_duplicates: bool = False,
        processes: int = 1,
        language: str | None = "en",
    ):
        self._seed, self._near, self._language = seed, near_duplicates, language
        self._folder = stage_folder(workdir, "captions", version)
        self.overlap, self._pool = processes, None
        if processes > 1:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                processes,
                multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
                initializer=_start_process,
                initargs=(workdir, version, seed, fold_case, near_duplicates, 1, language),
            )
        else:
            texts = load_bank(workdir, version).texts
            if language is None:
                self._matcher = Matcher(texts, fold_case)
            else:
                self._matcher = Matcher(list(map(normalise, texts)), fold_case, language, merged=True)

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Matches one shard; digest and draw of each caption are stored beside, so that reducing reads no text.

        Raises:
          StoreError: one of the processes has died.
        """
        if self._pool:
            try:
                return self._pool.submit(_match_here, dict(shard)).result()
            except concurrent.futures.BrokenExecutor as error:
                raise StoreError(
                    f"{self._folder}: a process that matched these captions has died; most often the machine's memory"
                    " was full. Run the same command again, with a lower gen.balance.processes; everything committed so"
                    f" far is kept ({error})"
                ) from error
        import pyarrow as pa

        captions = read_columns(self._folder / shard["file"], ["id", "concept_id", "caption_index", "caption"])
        texts, ids = captions.column("caption").to_pylist(), captions.column("id").to_pylist()
        digests = b"".join([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts])
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        table = captions.select(["id", "concept_id", "caption_index"])
        matches = self._matcher.many(texts if self._language is None else list(map(normalise, texts)))
        columns = {
            "text_high": pa.array(halves[:, 0], pa.uint64()),
            "text_low": pa.array(halves[:, 1], pa.uint64()),
            "draw": pa.array(uniforms(self._seed, ids, "balance"), pa.float64()),
            "matches": pa.ListArray.from_arrays(pa.array(matches.offsets, pa.int32()), pa.array(matches.values)),
        }
        if self._near:
            columns |= {
                name: pa.array(band, pa.uint64()) for name, band in zip(SIGNATURE, signatures(texts).T, strict=True)
            }
        for name, column in columns.items():
            table = table.append_column(name, column)
        # Digests and draws are random, and ids and matches are read many times: what is quickest to read.
        data = parquet(table, compression="lz4", use_dictionary=False, write_statistics=False)
        name = generated.table_name(generated.MATCHES, shard["index"], shard["of"])
        return ShardOutput(files={name: data}, count=len(texts))

    def close(self) -> None:
        """Ends the processes."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _start_process(*arguments: Any) -> None:
    global _matcher_here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the waiting parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _matcher_here = MatchWorker(*arguments)


def _end_with_parent() -> None:
    """Ends this process with the one that started it, even if that is killed: the pool itself would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _match_here(shard: Mapping[str, Any]) -> ShardOutput:
    assert _matcher_here is not None
    return _matcher_here(shard)


def _processes(wanted: int, captions: int) -> int:
    """How many processes match, where this machine's cores are ours to use."""
    return wanted or max(1, min(core_count(), captions // WORTH_A_PROCESS))


def run(config: Config, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Runs the stage on the committed captions of a workdir.

    Returns:
      A summary: captions in the pool, unique ones, those without a match, those kept, and the threshold.

    Raises:
      BalanceError: captions are missing, none has a match, or the target size cannot be reached.
      PlanMismatch: the workdir was balanced with another configuration, or its captions have changed.
    """
    version, settings = config.gen.version, config.gen.balance
    store, shards, _ = _planned(config, workdir)
    parameters = _parameters(settings)
    result_path = store.folder / generated.BALANCE
    if result_path.exists():
        result = generated.read_balance(result_path, BalanceError)
        _check_parameters(result["parameters"], parameters, result_path)
        if all(_size(store.folder / name) == meta["bytes"] for name, meta in result["files"].items()):
            return _summary(result)
    files = match(config, workdir, executor)
    bank = read_meta(workdir, version)
    selection = select(files, parameters, bank["count"])
    captions = [stage_folder(workdir, "captions", version) / shard["file"] for shard in shards]
    write = selected_writer(files, selection.rows, captions, bank["digest"])
    written = {generated.SELECTED: write_stream(store.folder / generated.SELECTED, write)}
    for name, counts in (
        (generated.COUNTS_BEFORE, selection.counts_before),
        (generated.COUNTS_AFTER, selection.counts_after),
    ):
        data = _npy(counts)
        write_atomic(store.folder / name, data)
        written[name] = {"bytes": len(data), "sha256": sha256(data)}
    result = {
        "sealed": True,
        **selection.report,
        "parameters": parameters,
        "fold_case": settings.fold_case,
        "bank_digest": bank["digest"],
        "counts_before": generated.COUNTS_BEFORE,
        "counts_after": generated.COUNTS_AFTER,
        "files": written,
    }
    state_files.write(result_path, result)
    return _summary(result)


def match(config: Config, workdir: Location, executor: Executor = run_local) -> MatchFiles:
    """The first half of the stage: matches the caption shards that are not matched yet.

    Raises:
      BalanceError: captions are missing.
      PlanMismatch: the workdir was balanced with another configuration, or its captions have changed.
    """
    settings = config.gen.balance
    store, shards, language = _planned(config, workdir)
    items = sum(shard["items"] for shard in shards)
    processes = _processes(settings.processes, items) if executor.is_local else 1
    records = executor(
        store,
        shards,
        functools.partial(
            MatchWorker,
            workdir,
            config.gen.version,
            config.seed,
            settings.fold_case,
            bool(settings.near_duplicates),
            processes,
            language,
        ),
        label="balance",
        unit="captions",
    )
    return MatchFiles(
        [store.path(next(iter(record["files"]))) for record in records.values()],
        [record["count"] for record in records.values()],
    )


def _planned(config: Config, workdir: Location) -> tuple[StageStore, list[dict[str, Any]], str | None]:
    """The stage's store, its plan made or checked, the shards to match, and the language of `MatchWorker`."""
    version, settings = config.gen.version, config.gen.balance
    bank_digest = read_meta(workdir, version)["digest"]
    shards, captions_digest = _caption_shards(stage_folder(workdir, "captions", version))
    store = StageStore(stage_folder(workdir, "balance", version))
    plan = {
        "stage": "balance",
        "bank": bank_digest,
        "captions": captions_digest,
        "seed": config.seed,
        "fold_case": settings.fold_case,
    }
    if settings.near_duplicates:  # the plans of workdirs from before there was this filter stay as they are
        plan["near_duplicates"] = True
    language: str | None = config.gen.captions.language
    if language == "en" and _is_of_an_older_release(store, plan):
        language = None  # what is matched of it goes on as it began
    else:
        plan["language"] = language
    store.ensure_plan(plan)
    return store, shards, language


def _is_of_an_older_release(store: StageStore, plan: Mapping[str, Any]) -> bool:
    """Whether a stage was begun before plans named a language: its plan says so, or, if that is lost, its records."""
    there = store.read_damaged_plan() if store.plan_path.exists() else None
    if there is not None:
        return "language" not in there
    return plan_digest(plan) in store.plans_of_records()


def _parameters(settings: Balance) -> dict[str, Any]:
    """What the selection depends on beside the plan."""
    parameters = {key: settings[key] for key in ("t", "target_size", "tail_share", "deduplicate")}
    if settings.near_duplicates:
        parameters["near_duplicates"] = settings.near_duplicates
    if settings.method != "balanced":
        parameters["method"] = settings.method
    return parameters


def _caption_shards(folder: Location) -> tuple[list[dict[str, Any]], str]:
    """The shards to match, one per committed caption shard, and a digest over the captions.

    Raises:
      BalanceError: the captions stage has not finished.
    """
    store = StageStore(folder)
    again = "Run the captions stage first: python -m gen --stages=captions ..."
    if not store.plan_path.exists():
        raise BalanceError(f"{folder}: no captions yet. {again}")
    store.ensure_plan(read_json(store.plan_path))
    shards, digest = [], hashlib.sha256()
    for index, record in sorted(store.committed().items()):
        for name, meta in record["files"].items():
            if found := re.fullmatch(r"captions-(\d+)-of-(\d+)\.parquet", name):
                shards.append({"index": index, "of": int(found[2]), "items": record["count"], "file": name})
                digest.update(meta["sha256"].encode())
    of = shards[0]["of"] if shards else 0
    if not shards or len(shards) != of:
        raise BalanceError(f"{folder}: {len(shards)} of {of or '?'} caption shards are committed. {again}")
    return shards, digest.hexdigest()[:16]


def _check_parameters(there: Mapping[str, Any], now: Mapping[str, Any], path: Location) -> None:
    lines = differences(there, now, "gen.balance.")
    if lines:
        shown = "\n  ".join(lines)
        raise PlanMismatch(
            f"{path}: this workdir was balanced with other parameters (there -> now):\n  {shown}\nUse those, or"
            " start another version beside it with --new-version. While no images are made yet, delete"
            f" {path} and only the selection is made again"
        )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _size(path: Location) -> int:
    return path.stat().st_size if path.exists() else -1


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    near = result.get("rejects", {}).get("near_duplicate")
    return {
        **{key: result[key] for key in ("pool", "unique", "unmatched", "kept", "t")},
        **({} if near is None else {"near duplicates": near}),
    }
