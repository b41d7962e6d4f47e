"""Writes the data: concepts -> captions -> balance -> images -> a dataset that TensorFlow Datasets reads.

Here are the stages (`stages` lists them in their order) and the commands: `python -m gen`, `gen.estimate`,
`gen.progress`, `gen.verify`, `gen.audit`, `gen.testsets`. What they are made of is in the folders, from the ground up:
`answers` and `sprites`; `engines`; `shards`; `bank`, `filters` and `matching`; `checks`, `costs` and `held_out`. None
imports one above it.
"""
