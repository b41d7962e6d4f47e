"""Concept matching and balancing at size: ours against MetaCLIP's two ways of matching, in one run.

    python -m benchmarks.matching [--captions=20000] [--concepts=N] [--workdir=DIR] [--out=benchmarks/results]

Makes its own bank (numbers, WordNet if installed, unigrams, bigrams: MetaCLIP's mix, filled up with more pairs of words
to as many concepts as asked for) and its own captions: 9 to 15 words drawn by frequency with one concept in each, some
repeated, written to disk shard by shard. Then

- matchers alone, on the same captions, in turns, by processor time. `plain` reads the definition as SynthCLIP's TextGen
  does: every concept is looked for in every caption. `pyahocorasick` is what MetaCLIP's optional faster file does: an
  automaton of the padded concepts and a set of what it finds. All must find the same. `--alone` ends here: it is all
  that can be measured on a machine that does other work as well.
- the whole stage, in a process of its own, on all cores: reading the captions, matching, digests and draws, writing,
  then balancing to half the size. Its seconds are also given as shares of what 30 million captions may take on two
  cores: 8 minutes to match, 2 minutes to balance. Memory is the most that the process and its children had together.

The last number is our matcher's speed over pyahocorasick's. 30 million captions against 500,000 concepts:

    python -m benchmarks.matching --captions=30_000_000 --concepts=500_000 --workdir=DIR --out=benchmarks/results

They need 5 GB of disk in DIR, which is a temporary folder if none is named, and is emptied at the end. Of the committed
results, matching.json is a run with `--alone`; matching_30m.json is one of the whole stage by the matcher before this
one, an automaton (`ahocorasick_rs`).
"""

import argparse
import concurrent.futures
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import turns
from gen import balance, concepts
from gen.bank.sources import DEBIAN_WORDNET
from gen.concepts import build_bank, load_bank
from gen.matching.matcher import Matcher, space_text
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.config import default_config
from synthclip_jax.packages import versions

Match = Callable[[Sequence[str]], list[list[int]]]
ROUNDS = 3
MATCHING_LIMIT = 8 * 60 / 30e6  # seconds a caption
BALANCING_LIMIT = 2 * 60 / 30e6
MEMORY_LIMIT = 4 << 30  # bytes
SHARD = 65_536  # captions
REPEATED = 0.02  # share of captions that repeat the one before


def plain_matcher(concepts: Sequence[str]) -> Match:
    """Looks for each concept in turn."""
    padded = [f" {concept} " for concept in concepts]

    def match(text: str) -> list[int]:
        spaced = space_text(text)
        return [index for index, concept in enumerate(padded) if concept in spaced]

    return lambda texts: [match(text) for text in texts]


def pyahocorasick_matcher(concepts: Sequence[str]) -> Match:
    """An automaton of padded concepts, each with (id, text) as its value."""
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for index, concept in enumerate(concepts):
        automaton.add_word(f" {concept} ", (index, concept))
    automaton.make_automaton()

    def match(text: str) -> list[int]:
        return sorted({value[0] for _, value in automaton.iter(space_text(text))})

    return lambda texts: [match(text) for text in texts]


def our_matcher(concepts: Sequence[str]) -> Match:
    """Ours, with its arrays made into lists."""
    matcher = Matcher(concepts)

    def match(texts: Sequence[str]) -> list[list[int]]:
        matches = matcher.many(texts)
        values, offsets = matches.values.tolist(), matches.offsets.tolist()
        return [values[start:end] for start, end in itertools.pairwise(offsets)]

    return match


def make_bank(workdir: pathlib.Path, size: int) -> Any:
    """Writes a bank of so many concepts to a workdir; 0: as many as the default sources have."""
    config = default_config()
    if not (pathlib.Path(DEBIAN_WORDNET) / "data.noun").exists():
        config.gen.concepts.sources = ("numbers", "unigrams", "bigrams")
    texts = list(dict.fromkeys(concept.text for concept in build_bank(config)))
    known, words, rng = set(texts), _words()[0][:20_000], np.random.default_rng(0)
    while len(texts) < size:
        pair = " ".join(words[index] for index in rng.integers(0, len(words), 2))
        if pair not in known:
            known.add(pair)
            texts.append(pair)
    if 0 < size < len(texts):  # a sample keeps the mix
        texts = [texts[index] for index in np.sort(rng.choice(len(texts), size, replace=False))]
    path = workdir / "concepts.json"
    path.write_text(json.dumps(texts))
    config.gen.concepts.update(sources=("lists",), lists=(str(path),))
    concepts.run(config, workdir)
    return config


def _words() -> tuple[list[str], np.ndarray]:
    """Frequent words, and their cumulative probabilities."""
    import wordfreq

    words = wordfreq.top_n_list("en", 20_000)
    weights = np.array([wordfreq.word_frequency(word, "en") for word in words])
    return words, np.cumsum(weights / weights.sum())


def make_captions(workdir: pathlib.Path, count: int, processes: int) -> None:
    """Writes so many captions as a captions stage would: shards of consecutive ids, committed one by one."""
    StageStore(workdir / "gen" / "captions").ensure_plan({"stage": "captions", "surrogate": count})
    shards = -(-count // SHARD)
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(_make_shards, workdir, count, range(part, shards, processes)) for part in range(processes)]
        for task in tasks:
            task.result()


def _make_shards(workdir: pathlib.Path, count: int, shards: range) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = StageStore(workdir / "gen" / "captions")
    store.ensure_plan(json.loads(store.plan_path.read_bytes()))
    texts, of, each = load_bank(workdir).texts, -(-count // SHARD), -(-count // len(load_bank(workdir).texts))
    source = _words()
    for shard in shards:
        numbers = np.arange(shard * SHARD, min((shard + 1) * SHARD, count))
        ids, indices = np.divmod(numbers, each)
        table = pa.table(
            {
                "id": [f"{concept:06d}-{index:04d}" for concept, index in zip(ids, indices, strict=True)],
                "concept_id": ids.astype(np.int32),
                "concept": [texts[concept] for concept in ids],
                "caption_index": indices.astype(np.int32),
                "caption": surrogate_captions([texts[concept] for concept in ids], source, shard),
                "attempt": np.zeros(len(ids), np.int32),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        name = f"captions-{shard:05d}-of-{of:05d}.parquet"
        store.commit(shard, ShardOutput({name: buffer.getvalue()}, len(ids)))


def surrogate_captions(concepts: Sequence[str], source: tuple[list[str], np.ndarray], seed: int) -> list[str]:
    """A sentence for each concept: 8 to 14 frequent words and the concept among them."""
    words, cumulative = source
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 15, len(concepts))
    drawn = np.searchsorted(cumulative, rng.random(lengths.sum()) * cumulative[-1]).tolist()
    places, repeated = (rng.random(len(concepts)) * lengths).astype(int).tolist(), rng.random(len(concepts)) < REPEATED
    captions: list[str] = []
    end = 0
    for concept, length, place, again in zip(concepts, lengths.tolist(), places, repeated.tolist(), strict=True):
        start, end = end, end + length
        if again and captions:
            captions.append(captions[-1])
            continue
        text = [words[word] for word in drawn[start:end]]
        text.insert(place, concept)
        captions.append(f"{' '.join(text).capitalize()}.")
    return captions


def compare_matchers(texts: list[str], captions: list[str], plain_captions: int) -> dict[str, dict[str, float]]:
    """Captions per second of processor time, which other work on the machine disturbs least, and seconds to build."""
    contenders: dict[str, Callable[[Sequence[str]], Match]] = {
        "ours": our_matcher,
        "pyahocorasick": pyahocorasick_matcher,
        "plain": plain_matcher,
    }
    matchers, build_seconds, speeds = {}, {}, dict.fromkeys(contenders, 0.0)
    for name, make in contenders.items():
        start = time.process_time()
        matchers[name] = make(texts)
        build_seconds[name] = time.process_time() - start
    expected: list[list[int]] = []
    for _ in range(ROUNDS):  # taken in turns, so that a busy moment hits them all
        for name, match in matchers.items():
            mine = captions[:plain_captions] if name == "plain" else captions
            start = time.process_time()
            found = match(mine)
            speeds[name] = max(speeds[name], len(mine) / (time.process_time() - start))
            expected = expected or found
            if found != expected[: len(found)]:
                raise SystemExit(f"{name} does not find the same concepts as {next(iter(matchers))}")
    for name, speed in speeds.items():
        print(f"{name:>14}: {speed:>10,.0f} captions/s and core, built in {build_seconds[name]:.1f} s", flush=True)
    return {
        "captions_per_second": {name: round(speed, 1) for name, speed in speeds.items()},
        "build_seconds": {name: round(seconds, 2) for name, seconds in build_seconds.items()},
    }


def run_stage(workdir: pathlib.Path, captions: int, processes: int) -> None:
    """Matches and balances a workdir; prints what it took as JSON in the last line."""
    config = default_config()
    config.gen.balance.update(t=0.0, target_size=captions // 2, processes=processes)
    start = time.monotonic()
    balance.match(config, workdir)
    matched = time.monotonic()
    summary = balance.run(config, workdir)
    seconds = {"matching_seconds": matched - start, "balancing_seconds": time.monotonic() - matched}
    print(json.dumps(seconds | {"kept": summary["kept"]}), flush=True)


def run_in_process(workdir: pathlib.Path, captions: int, processes: int) -> dict[str, Any]:
    """`run_stage` in a process of its own, with the most memory that it and its children held at one moment."""
    command = [sys.executable, "-m", "benchmarks.matching", f"--stage-of={workdir}", f"--captions={captions}"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*command, f"--processes={processes}"], stdout=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_resident, _tree(process.pid))))
            time.sleep(0.05)
        output.seek(0)
        printed = output.read()
    print(printed.rpartition("{")[0], end="", flush=True)
    if process.returncode:
        raise SystemExit(f"the stage failed with status {process.returncode}")
    return json.loads(printed.splitlines()[-1]) | {"peak_bytes": peak}


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))
    except OSError:
        pass  # it has ended


def _resident(pid: int) -> int:
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def main() -> None:
    """Prints a line per matcher, what the stage takes, and the ratios."""
    parser = turns.make_parser("matching", __doc__)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--concepts", type=int, default=0, help="concepts in the bank; 0: all of the default sources")
    parser.add_argument("--compared", type=int, default=50_000, help="captions for timing the matchers alone")
    parser.add_argument("--plain-captions", type=int, default=50, help="captions for the plain loop")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes of the stage")
    parser.add_argument("--alone", action="store_true", help="the matchers alone, without the stage")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder on a large disk, for temporary files")
    parser.add_argument("--stage-of", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage_of:
        run_stage(arguments.stage_of, arguments.captions, arguments.processes)
        return
    if arguments.workdir:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
    workdir = pathlib.Path(tempfile.mkdtemp(prefix="matching-", dir=arguments.workdir))
    try:
        result = measure(workdir, arguments)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    turns.write(arguments.out, "matching", result)
    print(f"ours / plain: {result['ratio_to_plain']:.1f}")
    if not arguments.alone:
        print(f"the whole stage, a core / pyahocorasick, matching alone: {result['ratio_of_stage']:.2f}")
    print(f"ours / pyahocorasick: {result['ratio']:.2f}")


def measure(workdir: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes bank and captions, and measures."""
    count, processes = arguments.captions, arguments.processes
    start = time.monotonic()
    make_bank(workdir, arguments.concepts)
    make_captions(workdir, count, processes)
    texts = load_bank(workdir).texts
    print(f"{len(texts):,} concepts, {count:,} captions, made in {time.monotonic() - start:.0f} s", flush=True)
    compared = compare_matchers(texts, _first_captions(workdir, arguments.compared), arguments.plain_captions)
    speeds = compared["captions_per_second"]
    return {
        "cores": os.cpu_count(),
        "versions": versions(("pyahocorasick", "numpy", "pyarrow", "wordfreq", "symspellpy")),
        "concepts": len(texts),
        "captions": count,
        **compared,
        **({} if arguments.alone else measure_stage(workdir, count, processes, speeds["pyahocorasick"])),
        "ratio_to_plain": round(speeds["ours"] / speeds["plain"], 1),
        "ratio": round(speeds["ours"] / speeds["pyahocorasick"], 3),
    }


def measure_stage(workdir: pathlib.Path, count: int, processes: int, speed: float) -> dict[str, Any]:
    """What the whole stage takes, and a core's speed in it as a ratio to `speed`, pyahocorasick's."""
    stage = run_in_process(workdir, count, processes)
    disk = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    shares = {
        "matching": stage["matching_seconds"] / (MATCHING_LIMIT * count),
        "balancing": stage["balancing_seconds"] / (BALANCING_LIMIT * count),
        "memory": stage["peak_bytes"] / MEMORY_LIMIT,
    }
    for name in ("matching", "balancing"):
        share = f"{shares[name]:.2f} of the limit for as many captions, on {processes} processes"
        print(f"{name:>14}: {stage[f'{name}_seconds']:>10,.1f} s, {share}")
    print(f"{'memory':>14}: {stage['peak_bytes'] / 2**30:>10,.2f} GiB at most, {shares['memory']:.2f} of the limit")
    print(f"{'disk':>14}: {disk / 2**30:>10,.2f} GiB")
    return {
        "processes": processes,
        "stage": {key: round(value, 2) for key, value in stage.items()},
        "shares_of_limits": {key: round(value, 3) for key, value in shares.items()},
        "disk_bytes": disk,
        "ratio_of_stage": round(count / stage["matching_seconds"] / processes / speed, 3),
    }


def _first_captions(workdir: pathlib.Path, count: int) -> list[str]:
    """Captions of the first shards, as they were written."""
    from gen.shards.tables import read_columns

    captions: list[str] = []
    for path in sorted((workdir / "gen" / "captions").glob("captions-*.parquet")):
        captions += read_columns(path, ["caption"]).column("caption").to_pylist()
        if len(captions) >= count:
            break
    return captions[:count]


if __name__ == "__main__":
    main()
