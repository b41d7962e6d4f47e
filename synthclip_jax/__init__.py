"""Trains and evaluates CLIP on synthetic data with JAX."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib.metadata  # only who asks for the version waits for it

    try:
        return importlib.metadata.version("synthclip_jax")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"  # a checkout that is not installed
