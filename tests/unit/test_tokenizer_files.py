"""The tokenizer of an export: the ids of our own, also for what CLIP's cleaning changes."""

import pytest

from synthclip_jax.formats import tokenizer_files
from synthclip_jax.text.tokenizer import END_ID, Tokenizer, clean

# Each of them is changed by the cleaning, or hard to split.
TEXTS = (
    "salt &amp; pepper",
    "&amp;amp;quot;twice&amp;amp;quot;",
    "&lt;b&gt;bold&lt;/b&gt; &copy; &eacute;&nbsp;x",
    "it&#39;s &#x2019;s &#8220;q&#8221; &#0038; &apos;",
    "DON\u2019T \u2018a\u2019 \u201cquotes\u201d \u2014 dash\u2026",
    "\u2167 \u00bd \ufb01ne \ufb03 \u0132",
    "\uff21\uff22\uff23 \uff11\uff12\u3000\uff01 \uff76\uff9f",
    "cafe\u0301 e\u0301\u0327 \u00c5NGSTR\u00d6M \u1e9e stra\u00dfe",
    "a\u00a0b\u200bc \ufeffbom nul\u0000l bell\u0007 \x1b[31mred\x1b[0m",
    "tab\tnew\nline\r\nend\u2028sep\u0085nel",
    "don't 's 't 're 've 'm 'll 'd o'clock",
    "\u65e5\u672c\u8a9e \u30c6\u30ad\u30b9\u30c8 \U0001f468\u200d\U0001f469\u200d\U0001f467 \ufdfa",
    "\u0130stanbul \u01c5 \u017f 1,000.50$",
    "",
    "a" * 300,
    "9" * 100,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from tokenizers import Tokenizer as Stock

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.write(folder)
    return Stock.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_same_ids_in_an_export(exported, text):
    row = Tokenizer(512)(text)[0].tolist()
    assert exported.encode(text).ids == row[: row.index(END_ID) + 1]


def test_most_of_these_texts_are_changed_by_the_cleaning():
    changed = [text for text in TEXTS if clean(text) != " ".join(text.lower().split())]
    assert len(changed) >= 9


def test_ids_become_readable_text_again(exported):
    assert exported.decode(exported.encode("A caf\u00e9\u2019s dog &amp; cat").ids) == "a caf\u00e9 's dog & cat"
