"""Does a training run fit a machine that is not here, and how fast can it be there? See `__main__`."""
