"""Test sets for models trained on sprites: captions and images that training has not seen."""
