"""Images side by side, each with its text."""

import numpy as np
import pytest

from synthclip_jax.images.contact_sheet import COLUMNS, GAP, LINES, SIDE, contact_sheet


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (COLUMNS + 1, COLUMNS, 2)])
def test_images_stand_in_rows_each_over_its_text(count, columns, rows):
    colours = np.arange(1, count + 1, dtype=np.uint8) * 20
    sheet = contact_sheet([np.full((32, 32, 3), colour) for colour in colours], ["a red car"] * count)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == columns * (SIDE + GAP) + GAP
    cell = (sheet.shape[0] - GAP) // rows
    for number, colour in enumerate(colours):
        top, left = GAP + number // COLUMNS * cell, GAP + number % COLUMNS * (SIDE + GAP)
        assert (sheet[top : top + SIDE, left : left + SIDE] == colour).all()
        below = sheet[top + SIDE : top + cell - GAP, left : left + SIDE]
        assert (below < 128).any()  # ink
        assert below[len(below) // LINES + 4 :].min() == 255  # in one line


def test_long_and_foreign_texts_stay_in_their_place():
    texts = ["word " * 200, "x" * 1000, "猫 🦜", ""]
    sheet = contact_sheet([np.zeros((300, 300, 3), np.uint8)] * 4, texts)
    assert (sheet[-GAP:] == 255).all()
    assert (sheet[GAP + SIDE + 1 :, -SIDE:] == 255).all()  # no text, no ink
