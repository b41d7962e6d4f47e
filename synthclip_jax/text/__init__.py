"""Texts: their tokens, and whether a concept is in one."""
