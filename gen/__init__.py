"""Writes the data: concepts -> captions -> balance -> images -> a dataset that TensorFlow Datasets reads."""
