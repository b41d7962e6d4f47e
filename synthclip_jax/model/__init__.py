"""The model: towers, what its input goes through, checkpoints, and the encoder that a checkpoint is."""
