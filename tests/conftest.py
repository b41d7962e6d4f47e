"""Eight CPU devices, strict shapes, and our own warnings as errors, for every test. Imports nothing heavy."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

import pytest

# Read when jax is first imported, by the tests that need it. Most of what the suite spends on XLA is compiling, and
# programs this small need not be fast: without optimizations, and with the older of jax 0.10's two code generators
# (later ones have but the newer), that takes a seventh of the time.
# Tests that start programs of their own have them on `one_device`.
flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda python -m pytest -m gpu, where there is a GPU
# Tests run side by side, and threads of torch that wait for others use up a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Nothing is ever fetched: a model or data set that is not there is a failure at once, not after a timeout.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    if importlib.util.find_spec("hypothesis"):
        import hypothesis

        # A slow machine is no failure: what hangs is ended by pytest-timeout.
        hypothesis.settings.register_profile("no deadline", deadline=None)
        hypothesis.settings.load_profile("no deadline")
    # Ours are errors; what third parties warn of each other is theirs.
    for package in ("synthclip_jax", "gen", "configs", "tests"):
        config.addinivalue_line("filterwarnings", rf"error:::{package}(\..*)?")


# Files that take longest start first, so that none is left to one of the workers at the end. None of parity/, whose
# open_clip has stand-ins in it: what comes after it in the same process would find that one.
LONGEST = (
    "test_pipeline",
    "test_train",
    "test_step",
    "test_object_store",
    "test_explore",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Garbage is looked for less often, and not among the modules: a tenth of what tracing and compiling take."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of programs that tests start: our modules, one device, and what one has compiled others find.

    Not for this process: on several devices programs from the cache may hang (synthclip_jax.devices.compile_cache).
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which the processes of this run of the tests have in common
    return {
        **os.environ,
        "XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag),
        "JAX_COMPILATION_CACHE_DIR": str(base / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }


@pytest.fixture(autouse=True)
def parsed_flags() -> None:
    """Grain reads absl flags, which exist once grain is imported and are parsed by programs, not by pytest."""
    if "absl.flags" in sys.modules:
        sys.modules["absl.flags"].FLAGS.mark_as_parsed()
