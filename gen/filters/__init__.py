"""What is turned away, and why: captions, images."""
