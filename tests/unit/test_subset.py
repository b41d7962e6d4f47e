"""Parts of datasets: of the size asked for, nested, chosen by the seed alone, and readable like the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_dataset import write_dataset

from synthclip_jax.config import default_config
from synthclip_jax.data import stream
from synthclip_jax.data.readers.subset import chosen
from synthclip_jax.data.records import RecordError
from synthclip_jax.data.verify import verify


@given(st.integers(1, 400), st.integers(0, 2**63 - 1), st.data())
def test_a_smaller_part_is_inside_a_larger_one_and_each_has_its_size(total, seed, data):
    large = data.draw(st.integers(1, total))
    small = data.draw(st.integers(1, large))
    outer, inner = chosen(total, large, seed), chosen(total, small, seed)
    assert (len(outer), len(inner)) == (large, small)
    assert set(inner) <= set(outer) <= set(range(total))
    assert (np.diff(outer) > 0).all()


def test_the_choice_is_spread_evenly_and_another_seed_makes_another_one():
    first, second = chosen(100_000, 5_000, 0), chosen(100_000, 5_000, 1)
    tenths = np.bincount(first // 10_000, minlength=10)
    assert tenths.sum() == 5_000
    assert np.abs(tenths - 500).max() < 100  # 4.7 standard deviations
    gaps = np.diff(first)
    assert 0.9 < gaps.std() / gaps.mean() < 1.1  # as of a random choice; of a regular one it would be near 0
    assert len(set(first) & set(second)) == pytest.approx(250, abs=75)


def test_the_choice_never_changes():
    """Whoever has half a run behind him must find the same examples again."""
    assert chosen(20, 5, 0).tolist() == [0, 3, 4, 5, 11]


def open_part(folder, part, seed=0, **values):
    config = default_config().data
    config.update(path=str(folder), part=part, **values)
    return stream.open_dataset(config, "/nowhere", seed)


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "toy", examples=40, shards=4, numbered=True)
    return tmp_path / "toy"


def captions(pairs) -> list[str]:
    return [pairs[index].captions[0] for index in range(len(pairs))]


def test_a_share_and_a_number_give_the_same_examples_of_a_dataset(folder):
    share, number, whole = open_part(folder, 0.25), open_part(folder, 10), open_part(folder, 1.0)
    assert len(share) == 10
    assert captions(share) == captions(number)
    assert set(captions(share)) < set(captions(open_part(folder, 0.5))) < set(captions(whole))
    assert captions(share) != captions(open_part(folder, 0.25, seed=1))
    assert captions(share) == [f"number {index}" for index in chosen(40, 10, 0)]


def test_a_part_is_another_dataset_than_the_whole_and_than_another_part(folder):
    digests = [open_part(folder, part).digest() for part in (1.0, 0.5, 0.25)] + [open_part(folder, 0.25, 1).digest()]
    assert len(set(digests)) == 4
    assert open_part(folder, 10).digest() == open_part(folder, 0.25).digest()


def test_a_part_can_be_verified(folder):
    part = open_part(folder, 0.3)
    shards = part.readers[0].shards()
    assert sum(len(shard.examples) for shard in shards) == 12
    assert [index for shard in shards for index in shard.examples] == list(range(12))
    assert verify(part, threads=2, on_error="raise", say=lambda line: None) == []


def test_sources_have_parts_of_their_own(folder, tmp_path):
    write_dataset(tmp_path / "other", examples=12, shards=1)
    config = default_config().data
    config.sources = (
        (f"tfrecord:{folder}", None, None, None, 0.5),
        (f"tfrecord:{tmp_path}/other", None, None, None, 3),
    )
    config.part = 1.0
    pairs = stream.open_dataset(config, "/nowhere")
    assert [len(span) for span in pairs.spans] == [20, 3]
    config.sources, config.part = (f"tfrecord:{folder}", f"tfrecord:{tmp_path}/other"), 0.5
    assert [len(span) for span in stream.open_dataset(config, "/nowhere").spans] == [20, 6]


@pytest.mark.parametrize("part", [41, 0.001])
def test_more_than_there_is_or_less_than_one_is_refused(folder, part):
    with pytest.raises(RecordError, match=r"of it are asked for, it holds 40 examples\. Lower config\.data\.part"):
        open_part(folder, part)
