"""Joins a Ray cluster, or starts one on this machine."""

import os
from typing import Any

from synthclip_jax.files.storage import StoreError

OBJECT_STORE_BYTES = 100 * 2**20  # of a cluster on this machine: only plans and records go through it


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine, unless this process has one.

    Raises:
      StoreError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise StoreError(f"--executor=ray needs Ray: pip install 'synthclip_jax[ray]' ({error})") from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"logging_level": "warning"}
        if not address:
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"RAY_ADDRESS={address or ''}: no Ray cluster can be used ({error}). Give the address of one (auto: the"
                " one that runs on this machine), or unset it to start one here"
            ) from error
