"""The search for the fastest setting, with stand-ins for the compiler."""

import math

import pytest

from synthclip_jax.config import load_config
from synthclip_jax.devices.sharding import mesh_shape
from synthclip_jax.plan import ahead, fastest
from synthclip_jax.plan.__main__ import main
from synthclip_jax.plan.ahead import Attempt
from synthclip_jax.plan.chips import GIB, Topology
from synthclip_jax.plan.estimate import estimate

PAPER = "configs/synthci_30m.py"
FLAT = ("model.vision.layers=1", "model.text.layers=1")  # soon traced by the estimates


@pytest.fixture(scope="module")
def paper():
    return load_config(PAPER, [*FLAT, "train.batch_size=4096"])


class Compiler:
    """A stand-in: a step takes what `seconds` says, and fits if `needed` says so. Remembers what it was given."""

    def __init__(self, topology, seconds, needed=lambda config: 1.0):
        self.topology, self.seconds, self.needed, self.given = topology, seconds, needed, []

    def attempt(self, config):
        self.given.append(config)
        needed = self.needed(config)
        return Attempt(needed <= self.topology.usable, needed, None, {}, None)

    def search(self, config, limit, say=lambda line: None):
        seconds = lambda config, result: self.seconds(config)  # noqa: E731
        return fastest.find_fastest(config, self.topology, limit, self.attempt, seconds, say)


def ideal(config):
    """A model that likes to be unrolled, without remat, with four devices to a copy of the parameters."""
    model, mesh = config.model, mesh_shape(config.train.mesh, 8)
    recomputed = {"auto": 0, "none": 0, "elementwise": 1, "dots": 2, "full": 3}[model.remat]
    slow = 2.0 * (model.attention == "xla") + recomputed
    return 10 + slow + model.scan_layers + 0.1 * abs(mesh["fsdp"] - 4) + mesh["tensor"] + bool(config.train.microbatch)


def test_the_fastest_setting_is_found_one_lever_at_a_time_and_printed_as_overrides(paper):
    topology = Topology.parse("h100:2x4")
    given = load_config(PAPER, [*FLAT, "train.batch_size=4096", "model.attention=xla", "model.remat=full"])
    compiler = Compiler(topology, ideal)
    best = compiler.search(given, 40)
    assert str(best) == (
        "--config.model.attention=auto --config.model.scan_layers=False --config.model.remat=none"
        " --config.train.mesh.fsdp=4"
    )
    assert best.seconds == ideal(best.config) == min(ideal(config) for config in compiler.given)
    assert len(compiler.given) < 30


def test_no_program_is_compiled_twice_and_no_more_than_are_allowed(paper):
    topology = Topology.parse("h100:2x4")
    lines = []
    compiler = Compiler(topology, ideal)
    compiler.search(paper, 40, lines.append)
    keys = {
        (config.model.attention, config.model.remat, config.model.scan_layers, config.train.microbatch, *mesh.values())
        for config in compiler.given
        if (mesh := mesh_shape(config.train.mesh, 8))
    }
    assert len(keys) == len(compiler.given)
    few = Compiler(topology, ideal)
    best = few.search(paper, 3)
    assert len(few.given) == 3
    assert best.seconds == min(ideal(config) for config in few.given)
    assert [line.split()[1] for line in lines[::2]] == [f"{n}/40" for n in range(1, len(compiler.given) + 1)]
    assert "left)" in lines[2]


def test_what_trains_otherwise_is_never_tried(paper):
    compiler = Compiler(Topology.parse("v5e:2x4"), ideal)
    compiler.search(paper, 40)
    changed = {"attention", "remat", "scan_layers"}
    for config in compiler.given:
        assert {key for key in paper.model if config.model[key] != paper.model[key]} <= changed
        assert {key for key in paper.train if config.train[key] != paper.train[key]} <= {"mesh", "microbatch"}
        assert paper.model.vision.heads % mesh_shape(config.train.mesh, 8)["tensor"] == 0


def test_a_setting_that_does_not_fit_is_never_the_answer_if_one_fits():
    """By estimate, so many pairs do not fit without remat; the fastest setting that does is wanted."""
    topology = Topology.parse("v5e:2x4")
    layers = *FLAT, "model.vision.layers=2", "model.remat=none"
    config = load_config(PAPER, [*layers, "train.batch_size=16384", "model.attention=xla"])
    compiler = Compiler(topology, ideal, lambda config: estimate(config, topology).total)
    assert not compiler.attempt(config).fits
    best = compiler.search(config, 40)
    assert best.result.fits
    tried = {ideal(config) for config in compiler.given if estimate(config, topology).total <= topology.usable}
    assert best.seconds == min(tried)


def test_where_nothing_fits_the_least_need_is_named(paper):
    topology = Topology.parse("v5e:1x1")
    compiler = Compiler(topology, ideal, lambda config: 1000 * estimate(config, topology).total)
    best = compiler.search(paper, 12)
    assert math.isinf(best.seconds)
    assert best.result.needed == min(compiler.needed(config) for config in compiler.given)


def test_the_command_searches_and_says_what_the_bound_of_the_best_is(paper, capsys, monkeypatch):
    monkeypatch.setattr(ahead, "quiet_libtpu", lambda: None)  # for processes of their own
    arguments = [f"--config={PAPER}", "--topology=h100:8", "--arithmetic", "--config.model.remat=full"]
    arguments += [f"--config.{value}" for value in FLAT]
    assert main([*arguments, "--search=6"]) == 0
    out = capsys.readouterr().out
    assert "search        1/6 as given" in out
    assert "\nverdict       fastest by its bound: --config.model.remat=" in out
    assert "MFU at most" in out
    assert main([*arguments, "--search=2", f"--config.train.batch_size={2**20}"]) == 1
    assert "verdict       none that was tried fits" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--search=-1"])


def test_bytes_are_said_in_gib(paper):
    lines = []
    Compiler(Topology.parse("h100:1"), lambda config: 2.0, lambda config: 3 * GIB).search(paper, 1, lines.append)
    assert lines[1].split(", ")[:2] == ["              at best 2,048 pairs/s", "3.00 GiB"]
