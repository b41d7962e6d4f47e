"""Token rows: their form, truncation, and that the tokenizer is light."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from synthclip_jax.text.tokenizer import (
    END_ID,
    START_ID,
    VOCABULARY_SIZE,
    Tokenizer,
    clean,
    decode,
    encode,
    merges,
    vocabulary,
)


def test_a_row_is_start_token_text_end_token_zeros():
    row = Tokenizer(8)("a photo of a cat")[0]
    assert row.dtype == np.int32
    assert row.tolist() == [START_ID, 320, 1125, 539, 320, 2368, END_ID, 0]


def test_an_empty_text_is_only_the_two_special_tokens():
    assert Tokenizer(4)(["", "  \n"]).tolist() == [[START_ID, END_ID, 0, 0]] * 2


def test_no_texts_give_no_rows():
    assert Tokenizer(7)([]).shape == (0, 7)


@pytest.mark.parametrize("context_length", [2, 3, 16, 77])
def test_long_texts_keep_their_end_token(context_length):
    row = Tokenizer(context_length)("cat " * 100)[0]
    assert len(row) == context_length
    assert row[0] == START_ID
    assert row[-1] == END_ID
    assert row.argmax() == context_length - 1


def test_a_context_without_room_is_refused():
    with pytest.raises(ValueError, match="context_length=1 has no room"):
        Tokenizer(1)


def test_pickled_tokenizers_give_the_same_ids():
    tokenizer = Tokenizer(16)
    before = tokenizer(["two red foxes"])
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 500, "the vocabulary must not travel"
    np.testing.assert_array_equal(pickle.loads(pickled)(["two red foxes"]), before)


def test_the_vocabulary_has_its_published_size():
    table = vocabulary()
    assert len(table) == VOCABULARY_SIZE
    assert sorted(table.values()) == list(range(VOCABULARY_SIZE))
    assert len(merges()) == 48_894


def test_printable_ascii_is_cleaned_as_by_ftfy():
    ftfy = pytest.importorskip("ftfy")
    text = "".join(map(chr, range(32, 127))).replace("&", "")
    assert ftfy.fix_text(text) == text, "the shortcut of clean() rests on this"
    assert clean("  Two   WORDS ") == "two words"


def test_spelled_out_special_tokens_are_words_of_their_own():
    assert encode(["a <end_of_text> b"]) == [[*encode(["a"])[0], END_ID, *encode(["b"])[0]]]
    assert END_ID not in encode(["!<end_of_text>!"])[0]


def test_a_row_reads_as_the_model_sees_it():
    rows = Tokenizer(12)(["A red car, parked", "naïve 猫 it's", "one two three " * 4, "!", ""])
    texts = ["a red car , parked", "naïve 猫 it 's", "one two three " * 3 + "one", "!", ""]
    assert [decode(row) for row in rows] == texts
    assert [decode(row) for row in Tokenizer(12)(texts)] == texts
    assert decode(Tokenizer(4)("🦜🦜🦜")[0]) != ""  # cut in the middle of a character


def test_importing_the_tokenizer_loads_neither_jax_nor_tokenizers():
    code = (
        "import sys, synthclip_jax.text.tokenizer;"
        "assert not {'jax', 'flax', 'tokenizers', 'ftfy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
