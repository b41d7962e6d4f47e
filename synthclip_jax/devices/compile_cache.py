"""Compiled programs, kept between starts."""

import jax

from synthclip_jax.files.locations import cache_folder


def use_compile_cache() -> None:
    """Keeps compiled programs between starts in the user's cache folder, unless JAX was told of a place already.

    Not on several CPU devices: there a program from the cache runs its collectives in any order and hangs (jaxlib
    0.10.2 and 0.12.0).
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
