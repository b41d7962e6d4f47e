"""The data pipeline: what is read, what is drawn, and that the stream depends on nothing but seed and position."""

import collections
import itertools
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from toy_dataset import caption, jpeg, pixels, write_dataset

from synthclip_jax.config import default_config
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data import stream
from synthclip_jax.data.loader import Batch
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError
from synthclip_jax.data.stream import Pairs, make_loader
from synthclip_jax.images.decoding import ImageError
from synthclip_jax.training.claim import WorkdirMismatch, claim_workdir, describe_run

EXAMPLES = 20


def reader(folder, image_key="image", **kwargs):
    return open_reader(SourceSpec("tfrecord", str(folder), None, image_key, "caption"), **kwargs)


def tokenize(captions):
    """Stands in for the tokenizer: the characters' codes."""
    tokens = np.zeros((len(captions), 40), np.int32)
    for row, text in enumerate(captions):
        tokens[row, : len(text)] = [ord(letter) for letter in text]
    return tokens


@pytest.fixture
def config():
    data = default_config().data
    data.update(image_size=32, threads=2, prefetch=2, flip=0.5, grayscale=0.3, invert=0.3)
    return data


@pytest.fixture
def shards(tmp_path):
    return write_dataset(tmp_path / "toy", EXAMPLES, shards=3)


@pytest.fixture
def pairs(shards):
    return Pairs([reader(shards[0].parent)])


def take(config, pairs, count, batch_size=8, **kwargs):
    loader = make_loader(config, pairs, tokenize, batch_size, **{"seed": 0, **kwargs})
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
        np.testing.assert_array_equal(batch.tokens, other.tokens)


# ---- Records -------------------------------------------------------------------------------------------------------


def test_every_record_is_found_by_its_index_across_shards(pairs):
    assert len(pairs) == EXAMPLES
    assert [pairs[i].captions[0] for i in range(EXAMPLES)] == [caption(i) for i in range(EXAMPLES)]


def test_an_index_file_is_rebuilt_when_it_is_missing(shards):
    expected = [Pairs([reader(shards[0].parent)])[i].captions[0] for i in range(EXAMPLES)]
    for path in shards:
        path.with_name(path.name + INDEX_SUFFIX).unlink()
    rebuilt = Pairs([reader(shards[0].parent)])
    assert [rebuilt[i].captions[0] for i in range(EXAMPLES)] == expected


def test_a_missing_dataset_folder_is_named_with_what_to_do(tmp_path):
    with pytest.raises(RecordError, match=r"nowhere: no such dataset folder.*python -m gen"):
        reader(tmp_path / "nowhere")


@pytest.mark.parametrize("indexed", [True, False])
def test_a_truncated_shard_is_named_before_anything_is_read(shards, indexed):
    os.truncate(shards[1], os.path.getsize(shards[1]) - 7)
    if not indexed:
        shards[1].with_name(shards[1].name + INDEX_SUFFIX).unlink()
    with pytest.raises(RecordError, match=shards[1].name):
        reader(shards[0].parent)


def flip_a_bit(path, record):
    index = np.array(path.with_name(path.name + INDEX_SUFFIX).read_text().split(), int).reshape(-1, 2)
    content = bytearray(path.read_bytes())
    content[index[record].sum() - 200] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_is_named_with_shard_and_record(shards):
    flip_a_bit(shards[1], record=2)
    source = reader(shards[0].parent)
    with pytest.raises(RecordError, match=rf"{shards[1].name}: record 2 .*checksum"):
        source[source.shards()[1].examples[2]]


def test_a_flipped_bit_stops_the_loader_with_the_same_words(shards, config):
    flip_a_bit(shards[1], record=2)
    with pytest.raises(RecordError, match=rf"{shards[1].name}: record 2 .*checksum"):
        take(config, Pairs([reader(shards[0].parent)]), 3)


@pytest.mark.parametrize("bad", [b"no image", b"", jpeg(pixels(0))[:-300]], ids=["text", "empty", "cut off"])
def test_an_image_that_does_not_decode_stops_with_shard_and_record(tmp_path, config, bad):
    write_dataset(tmp_path, EXAMPLES, shards=2, replaced={13: bad})
    pairs = Pairs([reader(tmp_path)])
    with pytest.raises(ImageError, match=r"toy-train.tfrecord-00001-of-00002: record 3: .*on_error=skip"):
        take(config, pairs, 4)


def test_an_image_that_does_not_decode_is_skipped_and_counted_when_asked(tmp_path, config):
    write_dataset(tmp_path, EXAMPLES, shards=2, replaced={13: b"bad", 14: b"bad"})
    pairs = Pairs([reader(tmp_path)], on_error="skip")
    np.testing.assert_array_equal(pairs[13].image, pairs[15].image)
    assert [pairs[i].skipped for i in (12, 13, 14, 15)] == [0, 2, 1, 0]
    assert pairs[13].captions == pairs[15].captions == (caption(15),)
    assert sum(batch.skipped for batch in take(config, pairs, 4, batch_size=5)) == 3  # one epoch


def test_a_dataset_of_nothing_but_bad_images_is_not_skipped_through(tmp_path):
    write_dataset(tmp_path, 4, shards=1, replaced=dict.fromkeys(range(4), b"bad"))
    with pytest.raises(RecordError, match="in a row cannot be read"):
        Pairs([reader(tmp_path)], on_error="skip")[0]


def test_a_wrong_feature_name_lists_the_features_there_are(shards):
    with pytest.raises(RecordError, match=r"no 'picture'.*caption, id, image.*data.image_key"):
        reader(shards[0].parent, image_key="picture")


def test_the_digest_tells_datasets_apart(tmp_path):
    digests = set()
    for name, examples in (("a", 8), ("b", 9)):
        write_dataset(tmp_path / name, examples, shards=1)
        digests.add(reader(tmp_path / name).digest())
    write_dataset(tmp_path / "c", 8, shards=1)
    assert len(digests) == 2
    assert reader(tmp_path / "c").digest() in digests


def test_a_run_that_noted_no_contents_goes_on_and_other_contents_of_the_same_size_are_refused(tmp_path):
    config = default_config()

    def claim(pairs, *content):
        run = describe_run(config, len(pairs), pairs.digest(), *content)
        claim_workdir(tmp_path / "train" / "config.json", run, started=True)

    write_dataset(tmp_path / "data", 8, shards=1)
    pairs = Pairs([reader(tmp_path / "data")])
    record = describe_run(config, len(pairs), pairs.digest())
    claim_workdir(tmp_path / "train" / "config.json", record, started=False)  # as an older version has it
    claim(pairs, pairs.content_digest())
    (path,) = (tmp_path / "data").glob("*-00001")
    content = path.read_bytes()
    swapped = content.replace(b"red", b"\0\0\0").replace(b"yel", b"red").replace(b"\0\0\0", b"yel")
    path.write_bytes(swapped)
    other = Pairs([reader(tmp_path / "data", check_crc=False)])
    assert other.digest() == pairs.digest()
    with pytest.raises(WorkdirMismatch, match=r"dataset: .*content"):
        claim(other, other.content_digest())
    path.write_bytes(content)
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    moved = Pairs([reader(tmp_path / "elsewhere")])
    claim(moved, moved.content_digest())


# ---- The stream ----------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_example_once_and_each_epoch_in_another_order(pairs, config):
    captions = [bytes(row[row > 0].tolist()).decode() for b in take(config, pairs, 10, 4) for row in b.tokens]
    first, second = captions[:EXAMPLES], captions[EXAMPLES:]
    assert sorted(first) == sorted(second) == sorted(caption(i) for i in range(EXAMPLES))
    assert first != second


def test_the_stream_depends_on_the_seed_alone(pairs, config):
    assert_same(take(config, pairs, 3, seed=5), take(config, pairs, 3, seed=5))
    assert not np.array_equal(take(config, pairs, 1, seed=5)[0].tokens, take(config, pairs, 1, seed=6)[0].tokens)
    take(config, pairs, 1, seed=2**63 - 1)  # as large as a config may hold


@pytest.mark.parametrize("threads", [1, 5])
def test_the_stream_does_not_depend_on_threads_or_cache(pairs, shards, config, threads):
    expected = take(config, pairs, 6)
    config.threads = threads
    assert_same(take(config, Pairs(pairs.readers, cache=True), 6), expected)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_stream_does_not_depend_on_worker_processes(pairs, config, workers):
    expected = take(config, pairs, 6)
    config.workers = workers
    assert_same(take(config, pairs, 6), expected)


@pytest.mark.parametrize("seen", [8, 16, 40])
def test_the_stream_continues_where_it_was_left(pairs, config, seen):
    assert_same(take(config, pairs, 3, examples_seen=seen), take(config, pairs, 3 + seen // 8)[seen // 8 :])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_each_batch_of_the_one_host_stream(pairs, config, hosts):
    assert_same(take_together(config, pairs, 4, hosts), take(config, pairs, 4))


def take_together(config, pairs, count, hosts, **kwargs):
    """The batches of which each host has its share."""
    parts = [take(config, pairs, count, host=host, hosts=hosts, **kwargs) for host in range(hosts)]
    whole = []
    for shares in zip(*parts, strict=True):
        images, tokens = (
            np.stack([getattr(share, name) for share in shares], axis=1).reshape(
                -1, *getattr(shares[0], name).shape[1:]
            )
            for name in ("images", "tokens")
        )
        whole.append(Batch(images, tokens, sum(share.skipped for share in shares)))
    return whole


@pytest.mark.parametrize("mixed", [False, True])
def test_hosts_and_workers_may_join_and_leave_between_restarts(mixture, config, mixed):
    """1, 2, 4 and again 2 hosts, with threads or workers: together the batches of one host that never stopped."""
    pairs = mixture(weights=(3, 1)) if mixed else mixture()
    expected = take(config, pairs, 10)
    seen, batches = 0, []
    for hosts, workers, count in ((1, 2, 2), (2, 0, 1), (4, 0, 3), (2, 0, 4)):
        config.workers = workers
        batches += take_together(config, pairs, count, hosts, examples_seen=seen)
        seen += 8 * count
    assert_same(batches, expected)
    if not mixed:
        epoch = captions_of(batches)[: len(pairs)]
        assert sorted(epoch) == sorted(caption(i) for source in pairs.spans for i in range(len(source)))


# ---- Several sources and several captions --------------------------------------------------------------------------


@pytest.fixture
def mixture(tmp_path):
    """Two sources of 20 and 12 examples that share their first 12 captions, not their images."""

    def make(weights=None, **kwargs):
        if not (tmp_path / "b").exists():
            write_dataset(tmp_path / "a", EXAMPLES, shards=2)
            write_dataset(tmp_path / "b", 12, shards=1, replaced={i: jpeg(255 - pixels(i)) for i in range(12)})
        return Pairs([reader(tmp_path / "a"), reader(tmp_path / "b")], weights, **kwargs)

    return make


def captions_of(batches):
    return [bytes(row[row > 0].tolist()).decode() for batch in batches for row in batch.tokens]


def sources_of(pairs, config, count, **kwargs):
    """Which (source, example) the stream shows."""
    order = stream._indexes(pairs, 5)
    return [next((n, i - span.start) for n, span in enumerate(pairs.spans) if i in span) for i in order[:count]]


def test_sources_without_weights_are_one_dataset_seen_once_an_epoch(mixture, config):
    pairs = mixture()
    assert len(pairs) == EXAMPLES + 12
    shown = captions_of(take(config, pairs, 8))
    everything = sorted([caption(i) for i in range(EXAMPLES)] + [caption(i) for i in range(12)])
    assert sorted(shown[:32]) == sorted(shown[32:]) == everything
    assert shown[:32] != shown[32:]


@pytest.mark.parametrize("weights", [(3, 1), (0.2, 0.8), (1, 1)])
def test_sources_are_mixed_by_weight_and_each_is_seen_evenly(mixture, config, weights):
    pairs = mixture(weights)
    shown = sources_of(pairs, config, 400)
    share = weights[0] / sum(weights)
    for part in (shown[:40], shown[40:200], shown):  # not only in the long run
        assert abs(sum(source == 0 for source, _ in part) - share * len(part)) <= 2
    for source, span in enumerate(pairs.spans):
        examples = [example for which, example in shown if which == source]
        epochs = [examples[start : start + len(span)] for start in range(0, len(examples), len(span))][:-1]
        assert all(sorted(epoch) == list(range(len(span))) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs) > 2


def test_a_mix_shows_the_images_of_the_source_it_draws_from(mixture, config):
    config.update(flip=0.0, grayscale=0.0, invert=0.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    pairs = mixture((1, 2))
    images = np.concatenate([batch.images for batch in take(config, pairs, 4)])
    order = stream._indexes(pairs, stream._stream_seed(0))
    for index, image in zip(order[:32], images, strict=True):
        np.testing.assert_array_equal(image, pairs[index].image)


def test_the_digest_knows_sources_weights_and_key_maps(mixture):
    plain = mixture()
    maps = [("image", "caption")] * 2
    variants = [plain, mixture((1, 1)), mixture((1, 2)), mixture(key_maps=maps)]
    assert len({pairs.digest() for pairs in variants}) == len(variants)
    assert mixture((1, 2)).digest() == mixture((1, 2)).digest()
    assert Pairs(plain.readers[:1]).digest() == plain.readers[0].digest()


def test_the_sheet_names_sources_and_their_shares(mixture):
    assert re.fullmatch(
        r"32 pairs: 20 pairs in 2 shard\(s\) \(75.0% of the mix\): .*/a; 12 pairs in 1 .*\(25.0% of .*/b",
        mixture((3, 1)).describe(),
    )
    assert re.fullmatch(r"20 pairs in 2 shard\(s\): .*/a", Pairs(mixture().readers[:1]).describe())


def test_a_bad_image_is_replaced_by_one_of_its_own_source(tmp_path):
    write_dataset(tmp_path / "a", 4, shards=1, replaced={3: b"bad"})
    write_dataset(tmp_path / "b", 4, shards=1)
    pairs = Pairs([reader(tmp_path / "a"), reader(tmp_path / "b")], (1, 1), on_error="skip")
    assert (pairs[3].captions, pairs[3].skipped) == (pairs[0].captions, 1)


class SeveralCaptions(Pairs):
    def __getitem__(self, index):
        pair = super().__getitem__(index)
        return pair._replace(captions=tuple(f"{word} {index}" for word in ("one", "two", "three")))


def test_of_several_captions_one_is_drawn_at_each_step(pairs, config):
    several = SeveralCaptions(pairs.readers)
    batches = take(config, several, 50)
    shown = captions_of(batches)
    words = collections.Counter(text.split()[0] for text in shown)
    assert all(90 <= words[word] <= 180 for word in ("one", "two", "three"))  # 400 draws
    assert len({word for text in shown if text.endswith(" 7") for word in text.split()[:1]}) == 3
    assert captions_of(take(config, several, 50)) == shown
    # The image is cropped before the caption is drawn, so that it is the same however many captions there are.
    for batch, other in zip(batches, take(config, pairs, 50), strict=True):
        np.testing.assert_array_equal(batch.images, other.images)


def open_sources(config, *sources):
    config.sources = sources
    return stream.open_dataset(config, "/nowhere")


def test_a_config_names_sources_by_kind_and_place(tmp_path, config):
    write_dataset(tmp_path / "a", EXAMPLES, shards=2)
    write_dataset(tmp_path / "b", 12, shards=1)
    one = open_sources(config, f"tfrecord:{tmp_path}/a")
    assert (len(one), one.weights) == (EXAMPLES, None)
    two = open_sources(config, (f"tfrecord:{tmp_path}/a", 1), (f"tfrecord:{tmp_path}/b", 0.5, None, "id"))
    assert (len(two), two.weights) == (EXAMPLES + 12, [1, 0.5])
    assert two[EXAMPLES].captions == ("000000-0000-00",)
    with pytest.raises(RecordError, match="/nowhere: no such dataset folder"):
        open_sources(config)


def test_hosts_that_do_not_divide_the_batch_are_refused(pairs, config):
    with pytest.raises(ValueError, match="8 cannot be divided among 3 hosts"):
        make_loader(config, pairs, tokenize, 8, seed=0, hosts=3)


def test_pairs_travel_to_a_worker_without_open_files_or_cache(shards):
    pairs = Pairs([reader(shards[0].parent)], cache=True)
    before = pairs[3]
    sent = pickle.dumps(pairs)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent)[3].image, before.image)


def test_more_shards_than_files_may_be_open_raises_the_limit_or_says_so(monkeypatch):
    limits = []
    monkeypatch.setattr(stream.resource, "getrlimit", lambda _: (100, 5000))
    monkeypatch.setattr(stream.resource, "setrlimit", lambda _, pair: limits.append(pair))
    stream._allow_open_files(4000)
    assert limits == [(4000, 5000)]
    with pytest.raises(RecordError, match="ulimit"):
        stream._allow_open_files(6000)
