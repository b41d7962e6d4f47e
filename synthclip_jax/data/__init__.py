"""Training data: readers of all formats, the stream of examples, batches on the devices."""
