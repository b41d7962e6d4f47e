"""Shards: their plans and commit records, who makes them, and versions of them."""
