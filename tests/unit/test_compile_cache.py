"""Where compiled programs are kept, and where they are not."""

import jax
import pytest

from synthclip_jax.devices.compile_cache import use_compile_cache


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What JAX is told, which is not done to this process."""
    told = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SYNTHCLIP_CACHE", raising=False)
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return told


@pytest.mark.parametrize(("backend", "devices"), [("cpu", 1), ("gpu", 8)])
def test_programs_are_kept_in_the_users_cache_folder(backend, devices, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    use_compile_cache()
    assert settings == {"jax_compilation_cache_dir": str(tmp_path / "synthclip_jax" / "xla")}


def test_several_cpu_devices_keep_none(settings):
    assert jax.device_count() == 8
    use_compile_cache()
    assert settings == {"jax_enable_compilation_cache": False}
