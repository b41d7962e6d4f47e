"""Plans: machines by name, what a compiled program moves, the roofline, and the change that makes a run fit."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synthclip_jax.config import default_config, load_config
from synthclip_jax.devices.sharding import make_mesh
from synthclip_jax.model.towers import make_model, parameter_count
from synthclip_jax.plan import search
from synthclip_jax.plan.__main__ import main
from synthclip_jax.plan.ahead import Attempt, CompilerError, parse_refusal
from synthclip_jax.plan.chips import CHIPS, GIB, SHARE, Topology, TopologyError
from synthclip_jax.plan.estimate import Work, estimate, with_changes, work
from synthclip_jax.plan.roofline import roofline
from synthclip_jax.plan.traffic import traffic


@pytest.fixture(scope="module")
def paper():
    return load_config("configs/synthci_30m.py")


# ---- Machines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:16x16", 256), ("v5p:4x4x4", 64), ("v6e:8x8", 64), ("v4:2x2x1", 4), ("h100:4x8", 32)]
)
def test_machines_are_known_by_kind_and_shape(name, chips):
    topology = Topology.parse(name)
    assert topology.chips == chips
    assert topology.chip.peak_flops > 1e14


def test_hosts_of_gpus_come_first_and_are_joined_by_a_slower_network():
    work = Work(model=1, recomputed=0, loss=0, memory=0, wire=450e9)
    assert (
        roofline(Topology.parse("h100:8"), work).interconnect == roofline(Topology.parse("h100:1x8"), work).interconnect
    )
    assert roofline(Topology.parse("h100:1x8"), work).interconnect == 1
    assert roofline(Topology.parse("h100:4x8"), work).interconnect == 450 / 8 / 50  # eight links share it
    assert roofline(Topology.parse("h100:8x4"), work).interconnect == 450 / 4 / 50


def test_what_jax_may_take_of_a_gpus_memory_is_what_the_environment_says(monkeypatch):
    topology = Topology.parse("h100:1")
    monkeypatch.delenv(SHARE, raising=False)
    assert topology.usable == 0.75 * topology.chip.memory
    monkeypatch.setenv(SHARE, "0.92")
    assert topology.usable == 0.92 * topology.chip.memory
    assert Topology.parse("v5e:4x4").usable == 15.75 * GIB
    monkeypatch.setenv(SHARE, "92%")
    with pytest.raises(TopologyError, match=r"given '92%', allowed: a share"):
        _ = topology.usable


@pytest.mark.parametrize(
    ("name", "near"),
    [("v5e:16x17", "v5e:16x16"), ("v5litepod-256", "v5e:16x16"), ("v5p-128", "v5p:4x4x4"), ("v7:4x4", "")],
)
def test_an_unknown_machine_lists_those_known_and_the_nearest(name, near):
    with pytest.raises(TopologyError, match=f"Did you mean {near}" if near else "no such machine") as error:
        Topology.parse(name)
    assert all(kind in str(error.value) for kind in CHIPS)


# ---- Compiled programs ---------------------------------------------------------------------------------------------


def compiled(function, *arrays):
    return jax.jit(function).lower(*arrays).compile().as_text()


def split(shape, *spec):
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes():
    found = traffic(compiled(lambda x: x.sum(axis=0), split((64, 1000), "data")))
    (collective,) = found.collectives
    assert (collective.kind, collective.count, collective.payload) == ("all-reduce", 1, 4000)
    assert collective.wire == 4000 * 2 * 7 / 8
    assert found.wire == collective.wire


def test_a_collective_inside_a_loop_counts_as_often_as_the_loop_runs():
    def five_sums(x):
        return jax.lax.scan(lambda carry, _: (carry + (x * carry[0]).sum(axis=0), None), jnp.zeros(1000), length=5)[0]

    found = traffic(compiled(five_sums, split((64, 1000), "data")))
    sums = [collective for collective in found.collectives if collective.payload == 4000]
    assert sum(collective.count for collective in sums) == 5
    assert found.loops_unknown == 0


def test_a_program_of_one_device_sends_nothing_and_reads_and_writes_its_arrays():
    found = traffic(compiled(lambda x, y: x + y, jnp.zeros((256, 256)), jnp.ones((256, 256))))
    assert found.collectives == ()
    assert found.memory == 3 * 256 * 256 * 4


# ---- Arithmetic ----------------------------------------------------------------------------------------------------


def test_parameters_and_optimizer_are_counted_to_the_byte_and_shared_out_by_fsdp(paper):
    count = parameter_count(make_model(paper.model, paper.data.image_size).shapes)
    need = estimate(paper, Topology.parse("h100:8"))
    assert need.parameters == 4 * count
    assert need.optimizer == pytest.approx(8 * count, rel=1e-6)
    shared = estimate(with_changes(paper, {"train.mesh.fsdp": 8, "train.mesh.data": 1}), Topology.parse("h100:8"))
    assert shared.parameters < 0.15 * need.parameters


def test_remat_microbatches_and_the_ring_need_less_and_do_more(paper):
    topology = Topology.parse("h100:8")

    def of(**values):
        config = with_changes(paper, {key.replace("__", "."): value for key, value in values.items()})
        need = estimate(config, topology)
        return need, work(config, topology, need)

    plain, plain_work = of()
    full, full_work = of(model__remat="full")
    micro, micro_work = of(train__microbatch=1024)
    ring, _ = of(train__loss_method="ring")
    assert full.activations < plain.activations / 4
    assert micro.activations == pytest.approx(plain.activations / 4)
    assert ring.loss < plain.loss
    assert plain_work.recomputed == 0
    # One more forward pass, of three parts in all.
    assert full_work.recomputed == pytest.approx(plain_work.model / 3, rel=0.1)
    assert micro_work.recomputed == pytest.approx(plain_work.model / 3, rel=0.1)


def test_the_roofline_is_the_busiest_part():
    topology = Topology.parse("v5e:2x2")
    chip = topology.chip
    work = Work(model=4 * chip.peak_flops, recomputed=0, loss=0, memory=chip.memory_bandwidth / 2, wire=0)
    bound = roofline(topology, work)
    assert (bound.compute, bound.memory, bound.interconnect, bound.seconds) == (1, 0.5, 0, 1)
    assert (bound.mfu, bound.mfu_apart) == (1, pytest.approx(1 / 1.5))
    slow = roofline(topology, work._replace(wire=4 * chip.link_bandwidth))
    assert (slow.seconds, slow.mfu) == (4, 0.25)


# ---- The smallest change -------------------------------------------------------------------------------------------


def test_the_cheapest_change_that_really_fits_is_found(paper):
    """A stand-in for the compiler that needs a fifth more than the estimate, and a machine with room for some."""
    topology, tried = Topology.parse("v5e:4x4"), []

    def attempt(config):
        needed = 1.2 * estimate(config, topology).total
        return Attempt(needed <= 15.75 * GIB, needed, 15.75 * GIB, {}, None)

    as_given = attempt(paper)
    assert not as_given.fits
    change, result = search.find_change(
        paper, topology, as_given.needed, 15.75 * GIB, attempt, lambda change, result: tried.append((change, result))
    )
    assert result.fits
    assert tried[-1][0] is change
    assert not any(result.fits for _, result in tried[:-1])
    cheaper = [other for other in search.changes(paper, topology, as_given.needed) if other.cost < change.cost - 0.02]
    assert not any(attempt(with_changes(paper, other.values)).fits for other in cheaper[:5])
    assert "--config." in str(change)


def test_what_does_not_fit_at_all_is_said(paper):
    topology = Topology.parse("v5e:1x1")
    attempt = lambda config: Attempt(False, 1e15, 15.75 * GIB, {}, None)  # noqa: E731
    assert search.find_change(paper, topology, 1e15, 15.75 * GIB, attempt, lambda *_: None) is None


@pytest.mark.parametrize(
    ("message", "needed", "usable"),
    [
        ("... Used 51.24G of 15.75G hbm. Exceeded hbm capacity by 35.49G.", 51.24, 15.75),
        ("memory required for HLO temporaries (20.5G) exceeds available HBM (15.75G)", 20.5, 15.75),
    ],
)
def test_what_the_compiler_says_when_it_refuses_is_read(message, needed, usable):
    if message.startswith("..."):
        message = "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. " + message[4:]
    assert parse_refusal(message) == (pytest.approx(needed * GIB), pytest.approx(usable * GIB))


def test_another_failure_of_the_compiler_is_passed_on():
    with pytest.raises(CompilerError, match="out of luck"):
        parse_refusal("INTERNAL: out of luck")


# ---- The command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def same_environment(monkeypatch):
    monkeypatch.setattr("synthclip_jax.plan.ahead.quiet_libtpu", lambda: None)  # for processes of their own


def test_a_gpu_machine_is_answered_by_arithmetic_where_jaxs_compiler_for_it_is_missing(
    same_environment, capsys, monkeypatch
):
    monkeypatch.setattr("synthclip_jax.plan.gpu_target.PLUGINS", ("no_such_plugin",))
    arguments = ["--config=configs/synthci_30m.py", "--topology=h100:8"]
    assert main(arguments) == 0  # by the fused attention that `auto` takes there
    arguments.append("--config.train.batch_size=16384")
    status = main(arguments)
    out = capsys.readouterr().out
    assert "by arithmetic: JAX's compiler for GPUs is not here (pip install '.[cuda]'" in out
    for words in ("parameters", "optimizer", "activations", "MFU at most", "verdict"):
        assert words in out
    assert status == 1
    assert "does not fit as given; fits with --config." in out
    change = out.rsplit("fits with ", 1)[1].split()
    assert main([*arguments, *change]) == 0
    assert "verdict       fits\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x3"], "Did you mean v5e:"),
        (["--topology=h100:8", "--arithmetic", "--config.train.batch_size=1001"], "Allowed near it"),
        (["--topology=h100:8", "--arithmetic", "--config.train.mesh.fsdp=3"], "cannot be laid over 8 devices"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_what_does(arguments, message, same_environment, capsys):
    assert main(["--config=configs/synthci_30m.py", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_defaults_are_the_papers(paper):
    assert estimate(default_config(), Topology.parse("h100:8")).total == estimate(paper, Topology.parse("h100:8")).total
