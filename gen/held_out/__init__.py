"""Test sets for models trained on sprites: captions and pictures that training has not seen."""
