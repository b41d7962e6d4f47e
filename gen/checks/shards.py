"""Checks one shard: its commit record, its files, and what is in them. Processes may share the work."""

import collections
import dataclasses
import io
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gen.filters.agreement import FilterWorker
from gen.shards.store import StageStore, sha256
from gen.stages import BY_NAME
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.readers import recaptions
from synthclip_jax.data.readers.agreement import SUFFIX as SCORES
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError, parse_index, unframe_shard
from synthclip_jax.errors import UserError
from synthclip_jax.files import array_files
from synthclip_jax.files.locations import Location, location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.images.decoding import ImageError, check_image
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.generated import DATA_PREFIX

OTHER_PLAN = "belongs to another plan"
NAMED = 5  # ids named in one fault


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
      stage: whose output it is.
      shard: which shard has to be made again; None: no single one.
      text: file, record and what is wrong.
    """

    stage: str
    shard: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.text}"


@dataclasses.dataclass(frozen=True)
class ShardCheck:
    """One shard to check.

    Attributes:
      stage, folder, data_folder, shard: which one; folders as text.
      plan: digest of the stage's plan.
      items: how many items it plans.
      ids: what it plans, in order; empty: nothing is known of what is in it.
      captions: of images, the caption of each id.
      size: of images, their side in pixels.
      expected: the commit record that provenance holds; None: it holds none.
      source: of a dataset without the pairs of low agreement: the whole one's folder, the lowest score, the number of
        shards.
    """

    stage: str
    folder: str
    data_folder: str
    plan: str
    shard: int
    items: int
    ids: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    size: int = 0
    expected: Mapping[str, Any] | None = None
    source: tuple[str, float, int] | None = None


def check_shard(check: ShardCheck) -> tuple[list[Fault], int, int]:
    """Checks a shard.

    Returns:
      Its faults, how many items it holds, how many bytes were read.
    """
    path = generated.commit_path(location(check.folder), check.shard)
    try:
        record = _record(check, path)
    except StoreError as error:
        return [Fault(check.stage, check.shard, str(error))], 0, 0
    texts: list[str] = []
    contents: dict[str, bytes] = {}
    store = StageStore(check.folder, check.data_folder)
    if differs := _not_expected(record, check.expected):
        texts.append(f"{path}: {differs} not as in provenance.json")
    for name, meta in record["files"].items():
        file = store.path(name)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            texts.append(f"{file}: missing")
            continue
        except OSError as error:
            texts.append(f"{file}: cannot be read ({error.strerror})")
            continue
        contents[name] = data
        if len(data) != meta["bytes"] or sha256(data) != meta["sha256"]:
            texts.append(f"{file}: {len(data):,} bytes that are not the {meta['bytes']:,} committed (sha256)")
    stage = BY_NAME.get(check.stage)  # a test set is none
    if stage and stage.check:
        texts += pkgutil.resolve_name(stage.check)(check, store, record, contents)
    size = sum(map(len, contents.values()))
    return [Fault(check.stage, check.shard, text) for text in texts], record["count"], size


def _record(check: ShardCheck, path: Location) -> dict[str, Any]:
    """The commit record, whole and of this plan.

    Raises:
      StoreError: it is not.
    """
    if not path.exists():
        raise StoreError(f"{path}: missing: the shard is not made")
    record = generated.parse_commit(path.name, path.read_bytes())
    if record is None:
        raise StoreError(f"{path}: damaged: it is not the record that was written")
    if record["plan"] != check.plan:
        raise StoreError(f"{path}: {OTHER_PLAN}")
    return record


def _not_expected(record: Mapping[str, Any], expected: Mapping[str, Any] | None) -> str:
    """Which of the parts of a record that matter differ from those in provenance."""
    if expected is None:
        return ""
    files = {name: (meta["bytes"], meta["sha256"]) for name, meta in record["files"].items()}
    known = {name: (meta["bytes"], meta["sha256"]) for name, meta in expected["files"].items()}
    parts = {"its files": files != known}
    parts |= {f"its {key}": record[key] != expected[key] for key in ("count", "rejects")}
    return " and ".join(part for part, differs in parts.items() if differs)


def caption_problems(
    check: ShardCheck, store: StageStore, record: Mapping[str, Any], contents: Mapping[str, bytes]
) -> Iterator[str]:
    """Made and rejected captions are those planned."""
    ids: dict[str, list[str]] = {}
    for name, data in contents.items():
        kind = name.split("-")[0]
        try:
            columns = _columns(data, ["id", "reason"] if kind == "rejects" else ["id", "caption"])
        except (OSError, ValueError, KeyError) as error:
            yield f"{store.path(name)}: no table that can be read ({error})"
            continue
        ids[kind] = columns["id"]
        if kind == "rejects" and collections.Counter(columns["reason"]) != record["rejects"]:
            yield f"{store.path(name)}: its reasons are not those that the commit record counts"
    if len(ids) == 2:
        path = generated.commit_path(location(check.folder), check.shard)
        yield from _complete(str(path), check.ids, ids["captions"], ids["rejects"])
        if len(ids["captions"]) != record["count"]:
            yield f"{path}: {record['count']} captions, the file has {len(ids['captions'])}"


def image_problems(
    check: ShardCheck, store: StageStore, record: Mapping[str, Any], contents: Mapping[str, bytes]
) -> Iterator[str]:
    """Records are whole, with their own fields and an image that decodes; made and rejected ones are those planned."""
    captions = dict(zip(check.ids, check.captions, strict=True))
    made: list[str] | None = None
    rejected: list[str] | None = None
    ends: list[int] = []
    shard_name = ""
    for name, data in contents.items():
        path = store.path(name)
        if name.startswith("rejects-"):
            try:
                columns = _columns(data, ["id", "reason"])
                rejected = columns["id"]
                if collections.Counter(columns["reason"]) != record["rejects"]:
                    yield f"{path}: its reasons are not those that the commit record counts"
            except (OSError, ValueError, KeyError) as error:
                yield f"{path}: no table that can be read ({error})"
        elif name.startswith(DATA_PREFIX) and not name.endswith(INDEX_SUFFIX):
            made, shard_name, position = [], name, 0
            for number, payload in enumerate(unframe_shard(data, path)):
                if isinstance(payload, RecordError):
                    yield str(payload)
                    continue
                identity, problems = _image(payload, captions, check.size)
                made.append(identity)
                yield from (f"{path}: record {number}: {problem}" for problem in problems)
                position += len(payload) + 16
                ends.append(position)
    if made is not None:
        path = store.path(shard_name)
        if len(made) != record["count"]:
            yield f"{path}: {len(made):,} readable records, the commit record counts {record['count']:,}"
        index = contents.get(f"{shard_name}{INDEX_SUFFIX}")
        if index is not None:
            try:
                if parse_index(index, path).sum(axis=1).tolist() != ends:
                    yield f"{path}{INDEX_SUFFIX}: not the places of the records"
            except RecordError as error:
                yield str(error)
        if rejected is not None:
            yield from _complete(str(path), check.ids, made, rejected)


def _image(payload: bytes, captions: Mapping[str, str], size: int) -> tuple[str, list[str]]:
    """The id of a record, and what is wrong with it."""
    problems = []
    try:
        values = parse_example(payload)
        identity = values["id"][0].decode(errors="replace")
        if identity in captions and values["caption"][0].decode(errors="replace") != captions[identity]:
            problems.append(f"{identity} has the caption of another one")
        if int(identity.split("-")[0]) != values["concept_id"][0]:
            problems.append(f"{identity} has the concept of another one")
        if (side := check_image(values["image"][0])) != (size, size):
            problems.append(f"{identity} has an image of {side[0]} x {side[1]} pixels, {size} are planned")
    except ImageError as error:
        problems.append(f"{identity}: {error}")
    except (RecordError, KeyError, IndexError, ValueError, AttributeError) as error:
        return "", [f"not a record of an image with caption ({error!r})"]
    return identity, problems


def _complete(where: str, planned: tuple[str, ...], made: list[str], rejected: list[str]) -> Iterator[str]:
    """Made and rejected ids are together the planned ones, each once."""
    count = collections.Counter(made) + collections.Counter(rejected)
    for text, ids in (
        ("missing", [identity for identity in planned if identity not in count]),
        ("there twice", [identity for identity, number in count.items() if number > 1]),
        ("not planned here", sorted(set(count) - set(planned))),
    ):
        if ids:
            more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
            yield f"{where}: {len(ids):,} ids are {text}: {', '.join(ids[:NAMED])}{more}"


def score_problems(
    check: ShardCheck, store: StageStore, record: Mapping[str, Any], contents: Mapping[str, bytes]
) -> Iterator[str]:
    """One score for each pair."""
    for name, data in contents.items():
        if name.endswith(SCORES):
            try:
                scores = array_files.parse(data, name, "f", 1)
            except ValueError as error:
                yield f"{store.path(name)}: no scores ({error})"
                continue
            if scores.dtype != np.float32 or scores.shape != (record["count"],):
                yield f"{store.path(name)}: {scores.shape} {scores.dtype}, {record['count']} float32 are to be there"


def filtered_problems(
    check: ShardCheck, store: StageStore, record: Mapping[str, Any], contents: Mapping[str, bytes]
) -> Iterator[str]:
    """The pairs are those of the whole dataset that score high enough, and no others."""
    if check.source is None:
        return
    source, min_score, shards = location(check.source[0]), *check.source[1:]
    whole, name = source.parent.name, location(check.data_folder).parent.name
    try:
        output = FilterWorker(source, whole, name, min_score)({"index": check.shard, "of": shards})
    except (UserError, OSError, ValueError):
        return  # the whole dataset or its scores are damaged, which is said there
    for file, data in output.files.items():
        if contents.get(file) != data:
            yield f"{store.path(file)}: not the pairs of {whole} that score at least {min_score:g}"


def recaption_problems(
    check: ShardCheck, store: StageStore, record: Mapping[str, Any], contents: Mapping[str, bytes]
) -> Iterator[str]:
    """One text for each image, as many as the record counts that are not empty."""
    for name, data in contents.items():
        if not name.endswith(recaptions.SUFFIX):
            continue
        path, texts, ends, position = store.path(name), [], [], 0
        for payload in unframe_shard(data, path):
            if isinstance(payload, RecordError):
                yield str(payload)
                continue
            position += len(payload) + 16
            ends.append(position)
            try:
                texts.append(payload.decode())
            except UnicodeDecodeError:
                yield f"{path}: record {len(ends) - 1}: not UTF-8"
        if len(list(filter(None, texts))) != record["count"] or len(texts) != record["count"] + sum(
            record["rejects"].values()
        ):
            yield f"{path}: {len(list(filter(None, texts))):,} captions, the commit record counts {record['count']:,}"
        index = contents.get(f"{name}{INDEX_SUFFIX}")
        try:
            if index is not None and parse_index(index, path).sum(axis=1).tolist() != ends:
                yield f"{path}{INDEX_SUFFIX}: not the places of the records"
        except RecordError as error:
            yield str(error)


def _columns(data: bytes, names: list[str]) -> dict[str, list]:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data), columns=names)
    return {name: table.column(name).to_pylist() for name in names}
