"""When to look for other processes, and how a run is asked to stop."""

import os
import signal

import pytest

from synthclip_jax.distributed import StopRequest, _has_company


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),
        ({"SLURM_NTASKS": "8"}, False),  # a shell inside an allocation, not a task of it
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1234"}, True),
    ],
)
def test_other_processes_are_looked_for_only_where_the_environment_says_there_are_any(environment, expected):
    assert _has_company(environment) is expected


def test_a_signal_is_noted_once_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    request = StopRequest()
    assert not request.at(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.at(1)
    assert signal.getsignal(signal.SIGTERM) is before  # a second signal is not held back
    request.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
