"""Sprites: a text-to-image model's stand-in that needs no weights. It draws the nouns a caption names."""

from gen.sprites.nouns import ATTRIBUTION, Noun, vocabulary
from gen.sprites.painter import draw, draw_plan
from gen.sprites.reader import NotDrawable, Plan, read_caption

__all__ = ["ATTRIBUTION", "NotDrawable", "Noun", "Plan", "draw", "draw_plan", "read_caption", "vocabulary"]
