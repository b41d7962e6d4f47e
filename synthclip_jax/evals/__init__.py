"""Evaluation: test sets, and the suites that measure a checkpoint on them."""
