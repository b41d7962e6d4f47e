"""Trains and evaluates CLIP on synthetic data with JAX."""

__version__ = "0.1.0"
