"""The largest sizes of a foreign model that are believed.

More is a damaged or hostile file, and would take memory or time without end.
"""

LAYERS, WIDTH, HEADS, PIXELS, TOKENS = 1_000, 65_536, 1_024, 16_384, 65_536
