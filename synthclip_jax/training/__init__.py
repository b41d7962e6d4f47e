"""What surrounds a training."""
