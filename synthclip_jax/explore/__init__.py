"""A local page to look at a dataset through a trained model: find images by text, classify one, walk the concepts.

python -m synthclip_jax.explore --workdir=W
"""
