"""Balance: which captions are kept, so that frequent concepts do not drown the rare ones (MetaCLIP, arXiv 2309.16671).

A map over caption shards finds the concepts in each caption (`matches-*.parquet`, committed per shard); a reduction
drops repeated captions, counts concepts, settles the threshold t, prints what other thresholds would keep, and writes

    W/gen/balance/selected.parquet     the captions kept, in the order of ids, with the concepts found in them
    W/gen/balance/counts_before.npy    captions per concept before balancing, int64; counts_after.npy: after
    W/gen/balance/balance.json         threshold, totals, keep-rate curve; written last

Captions in which no concept is found are dropped, as in MetaCLIP, even if they were made for one: a concept that is
only found in another form ("Cats" for `cat`) does not count.
"""

import dataclasses
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt64

from gen.concepts import Bank, load_bank
from gen.draws import uniform
from gen.executor import Executor, run_local
from gen.keep_rate import (
    KeepRate,
    Matches,
    concept_counts,
    keep_curve,
    keep_probabilities,
    round_thresholds,
    threshold_for_size,
    threshold_for_tail_share,
)
from gen.matching import Matcher
from gen.store import (
    PlanMismatch,
    ShardOutput,
    StageStore,
    differences,
    read_json,
    sha256,
    stage_folder,
    to_json,
    write_atomic,
)
from synthclip_jax.locations import Location, parquet_source

CAPTIONS_PER_ID = 10_000  # a caption's number has four digits
BLOCK = 262_144  # captions written at once


class BalanceError(ValueError):
    """The captions cannot be balanced as asked; the text says what to change."""


class MatchWorker:
    """Finds the concepts in the captions of one shard after another.

    Args:
      folder: the captions stage's folder.
      bank: the concepts to look for.
      seed: of the run; a caption's draw depends on it and on the caption's id alone.
      fold_case: see `Matcher`.
    """

    def __init__(self, folder: Location, bank: Bank, seed: int, fold_case: bool):
        self._folder, self._seed = folder, seed
        self._matcher = Matcher(bank.texts, fold_case)

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Matches one shard; digest and draw of each caption are stored beside, so that reducing reads no text."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        captions = pq.read_table(
            parquet_source(self._folder / shard["file"]), columns=["id", "concept_id", "caption_index", "caption"]
        )
        texts, ids = captions.column("caption").to_pylist(), captions.column("id").to_pylist()
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        table = captions.select(["id", "concept_id", "caption_index"])
        columns = {
            "text_high": pa.array(halves[:, 0], pa.uint64()),
            "text_low": pa.array(halves[:, 1], pa.uint64()),
            "draw": pa.array([uniform(self._seed, identity, "balance") for identity in ids], pa.float64()),
            "matches": pa.array([self._matcher(text) for text in texts], pa.list_(pa.int32())),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        name = f"matches-{shard['index']:05d}-of-{shard['of']:05d}.parquet"
        return ShardOutput(files={name: buffer.getvalue()}, count=len(texts))


@dataclasses.dataclass(frozen=True)
class Pool:
    """All captions, or some of them, in the order of ids.

    Attributes:
      keys: an id as a number; ids and keys sort alike.
      shards, rows: where the caption is.
      text_high, text_low: halves of a 128-bit digest of the text.
      draws: uniform in [0, 1), one per caption.
      matches: the concepts found.
    """

    keys: Int64[np.ndarray, "captions"]
    shards: Int32[np.ndarray, "captions"]
    rows: Int64[np.ndarray, "captions"]
    text_high: UInt64[np.ndarray, "captions"]
    text_low: UInt64[np.ndarray, "captions"]
    draws: Float64[np.ndarray, "captions"]
    matches: Matches

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, mask: Bool[np.ndarray, "captions"]) -> "Pool":
        """The captions for which the mask is true."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        matches = values.pop("matches").where(mask)
        return Pool(**{name: value[mask] for name, value in values.items()}, matches=matches)


def first_of_equal(
    high: UInt64[np.ndarray, "captions"], low: UInt64[np.ndarray, "captions"]
) -> Bool[np.ndarray, "captions"]:
    """True for the first of several captions with equal text digests."""
    order = np.lexsort((low, high))  # stable: equal texts stay in the order of ids
    high, low = high[order], low[order]
    first = np.ones(len(order), bool)
    first[order[1:]] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return first


def run(config: Any, workdir: Location, executor: Executor = run_local) -> dict[str, Any]:
    """Runs the stage on the committed captions of a workdir.

    Returns:
      A summary: captions in the pool, unique ones, those without a match, those kept, and the threshold.

    Raises:
      BalanceError: captions are missing, none has a match, or the target size cannot be reached.
      PlanMismatch: the workdir was balanced with another configuration, or its captions have changed.
    """
    version = config.gen.version
    bank_digest = _bank_digest(workdir, version)
    captions_folder = stage_folder(workdir, "captions", version)
    shards, captions_digest = _caption_shards(captions_folder)
    store = StageStore(stage_folder(workdir, "balance", version))
    store.ensure_plan(
        {
            "stage": "balance",
            "bank": bank_digest,
            "captions": captions_digest,
            "seed": config.seed,
            "fold_case": config.gen.balance.fold_case,
        }
    )
    parameters = {key: config.gen.balance[key] for key in ("t", "target_size", "tail_share", "deduplicate")}
    result_path = store.folder / "balance.json"
    if result_path.exists():
        result = read_json(result_path)
        _check_parameters(result["parameters"], parameters, result_path)
        if all(_size(store.folder / name) == meta["bytes"] for name, meta in result["files"].items()):
            return _summary(result)
    bank = load_bank(workdir, version)
    records = executor(
        store,
        shards,
        lambda: MatchWorker(captions_folder, bank, config.seed, config.gen.balance.fold_case),
        label="balance",
        unit="captions",
    )
    pool = _read_pool([store.path(next(iter(records[index]["files"]))) for index in sorted(records)])
    result, kept, counts = _select(pool, parameters, len(bank.concepts))
    files = {
        "selected.parquet": _selected_table(kept, captions_folder, shards, bank),
        "counts_before.npy": _npy(counts),
        "counts_after.npy": _npy(concept_counts(kept.matches, len(bank.concepts))),
    }
    for name, data in files.items():
        write_atomic(store.folder / name, data)
    result |= {
        "parameters": parameters,
        "fold_case": config.gen.balance.fold_case,
        "bank_digest": bank.digest,
        "counts_before": "counts_before.npy",
        "counts_after": "counts_after.npy",
        "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()},
    }
    write_atomic(result_path, to_json(result))
    return _summary(result)


def _bank_digest(workdir: Location, version: str) -> str:
    """The digest of a workdir's bank, without reading its concepts unless there is none to complain about."""
    path = stage_folder(workdir, "concepts", version) / "bank.json"
    return read_json(path)["digest"] if path.exists() else load_bank(workdir, version).digest


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
            " start another version beside it with --new-version. While no pictures are made yet, delete"
            f" {path} and only the selection is made again"
        )


def _read_pool(paths: list[Location]) -> Pool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["concept_id", "caption_index", "text_high", "text_low", "draw", "matches"]
    tables = [pq.read_table(parquet_source(path), columns=columns) for path in paths]
    table = pa.concat_tables(tables)

    def column(name: str) -> np.ndarray:
        return table.column(name).to_numpy()

    keys = column("concept_id").astype(np.int64) * CAPTIONS_PER_ID + column("caption_index")
    chunks = table.column("matches").chunks
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    offsets = np.concatenate([[0], *lengths]).astype(np.int64).cumsum()
    values = np.concatenate([np.zeros(0, np.int32), *(chunk.flatten().to_numpy() for chunk in chunks)])
    sizes = [len(table) for table in tables]
    order = np.argsort(keys, kind="stable")
    if (np.diff(keys[order]) == 0).any():
        raise BalanceError(f"{paths[0].parent}: two captions have the same id; delete gen/captions and make them again")
    return Pool(
        keys=keys[order],
        shards=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order],
        rows=np.concatenate([np.arange(size) for size in sizes])[order],
        text_high=column("text_high")[order],
        text_low=column("text_low")[order],
        draws=column("draw")[order],
        matches=Matches(values, offsets).take(order),
    )


def _select(
    pool: Pool, parameters: Mapping[str, Any], concepts: int
) -> tuple[dict[str, Any], Pool, Int64[np.ndarray, "concepts"]]:
    """Settles the threshold and prints what others would keep.

    Returns:
      What to report, the captions kept, and how many unique captions contain each concept.
    """
    total = len(pool)
    if parameters["deduplicate"]:
        pool = pool.where(first_of_equal(pool.text_high, pool.text_low))
    counts = concept_counts(pool.matches, concepts)
    unique, matched = len(pool), int(np.count_nonzero(pool.matches.lengths))
    if not matched:
        raise BalanceError(
            f"none of {unique:,} captions contains a concept of the bank. Matching takes whole words in the bank's own"
            " case: try --config.gen.balance.fold_case=true, and look at gen/captions and gen/concepts/bank.jsonl"
        )
    if parameters["target_size"] > matched:
        raise BalanceError(
            f"gen.balance.target_size: given {parameters['target_size']:,}, allowed: at most {matched:,}, the number of"
            " unique captions that contain a concept. Lower it, or make more captions (gen.captions.per_concept) in"
            " another --workdir"
        )
    if parameters["target_size"]:
        t = threshold_for_size(pool.matches, counts, pool.draws, parameters["target_size"])
    elif parameters["tail_share"]:
        t = threshold_for_tail_share(counts, parameters["tail_share"])
    else:
        t = float(parameters["t"])
    curve = keep_curve(pool.matches, counts, pool.draws, [t, *round_thresholds(max(float(counts.max()), t))])
    # Once everything is kept, higher thresholds tell nothing.
    saturated = next((point.t for point in curve if point.kept == matched), float("inf"))
    curve = [point for point in curve if point.t <= max(saturated, t)]
    print(_curve_text(curve, t, total, unique, matched, int(counts.sum())), flush=True)
    kept = pool.where(pool.draws < keep_probabilities(pool.matches, counts, t))
    if not len(kept):
        raise BalanceError(f"t = {t:g} keeps none of {matched:,} captions. Choose a higher gen.balance.t")
    result = {
        "t": t,
        "pool": total,
        "unique": unique,
        "unmatched": unique - matched,
        "kept": len(kept),
        "matches": int(counts.sum()),
        "keep_curve": [dataclasses.asdict(point) for point in curve],
    }
    return result, kept, counts


def _curve_text(curve: list[KeepRate], t: float, pool: int, unique: int, matched: int, matches: int) -> str:
    lines = [
        f"balance: {pool:,} captions, {unique:,} unique, {matched:,} of them with a concept"
        f" ({matches / matched:.1f} each). What a threshold keeps:",
        f"{'t':>12} {'kept':>12} {'of unique':>10} {'in the tail':>12}",
    ]
    for point in curve:
        mark = "  <- chosen" if point.t == t else ""
        share = f"{point.kept / unique:.1%}"
        lines.append(f"{point.t:>12.6g} {point.kept:>12,} {share:>10} {point.tail_share:>12.1%}{mark}")
    return "\n".join(lines)


def _selected_table(kept: Pool, folder: Location, shards: list[dict[str, Any]], bank: Bank) -> bytes:
    """The captions kept as a Parquet file, in the order of ids, written block by block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "id": pa.string(),
            "concept_id": pa.int32(),
            "concept": pa.string(),
            "caption": pa.string(),
            "matches": pa.list_(pa.int32()),
        },
        metadata={"bank_digest": bank.digest},
    )
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for rows in _blocks(len(kept)):
            text = _caption_rows(kept.shards[rows], kept.rows[rows], folder, shards)
            matches = kept.matches.take(rows)
            lists = pa.ListArray.from_arrays(pa.array(matches.offsets, pa.int32()), pa.array(matches.values))
            table = text.append_column("matches", lists).cast(schema)
            writer.write_table(table)
    return buffer.getvalue()


def _blocks(count: int) -> Iterator[Int64[np.ndarray, "block"]]:
    for start in range(0, count, BLOCK):
        yield np.arange(start, min(start + BLOCK, count))


def _caption_rows(
    shard_of: Int32[np.ndarray, "block"], row_of: Int64[np.ndarray, "block"], folder: Location, shards: list[dict]
) -> Any:
    """The rows of the caption shards at the given places, in that order, as a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["id", "concept_id", "concept", "caption"]
    tables, places = [], []
    for shard in np.unique(shard_of):
        place = np.flatnonzero(shard_of == shard)
        source = parquet_source(folder / shards[shard]["file"])
        tables.append(pq.read_table(source, columns=columns).take(row_of[place]))
        places.append(place)
    return pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _size(path: Location) -> int:
    return path.stat().st_size if path.exists() else -1


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("pool", "unique", "unmatched", "kept", "t")}
