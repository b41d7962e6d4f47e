"""What writes captions, draws images and describes them, and what models need to do so."""
