"""When to look for other processes, and how a run is asked to stop."""

import http.server
import os
import signal
import threading

import pytest

from synthclip_jax.devices.distributed import StopRequest, _has_company, _local_devices, gather_texts, of_first

SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "8"}, True),
        (SLURM | {"SLURM_PROCID": "0"}, False),  # a batch script, whose srun starts the tasks
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1234"}, True),
    ],
)
def test_other_processes_are_looked_for_only_where_the_environment_says_there_are_any(environment, expected):
    assert _has_company(environment) is expected


@pytest.fixture
def metadata_server():
    """Google's metadata server as a TPU VM sees it; gives its address and a list of answers, by path."""
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Metadata-Flavor"] == "Google" and self.path in answers
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, "").encode())

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}", answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("workers", "expected"), [("t0:n0:10.0.0.2,t1:n1:10.0.0.3", True), ("t0:n0:10.0.0.2", False)])
def test_a_tpu_vm_asks_the_metadata_server_for_the_other_hosts_of_its_slice(metadata_server, workers, expected):
    address, answers = metadata_server
    answers["/computeMetadata/v1/instance/attributes/worker-network-endpoints"] = workers
    assert _has_company({"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": address}) is expected
    assert not _has_company({"GCE_METADATA_IP": address})  # no TPU here


def test_a_tpu_that_nobody_knows_is_alone(metadata_server):
    address, _ = metadata_server
    assert not _has_company({"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": address})


@pytest.mark.parametrize(
    ("tasks", "nodes", "seen", "expected"),
    [
        ("8", "1", "0,1,2,3,4,5,6,7", None),  # --gres=gpu:8: JAX takes the one that has the task's number
        ("8", "1", "0", [0]),  # --gpus-per-task=1: there is but one to take
        ("2", "2", "0,1,2,3", [0, 1, 2, 3]),  # one task for each node
        ("2", "1", "", None),  # no GPUs
    ],
)
def test_a_slurm_task_takes_the_gpus_that_are_its_own(tasks, nodes, seen, expected):
    environment = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes, "CUDA_VISIBLE_DEVICES": seen}
    assert _local_devices(environment) == expected
    assert _local_devices(environment | {"JAX_LOCAL_DEVICE_IDS": "1"}) is None  # said by hand


def test_alone_what_all_say_is_what_this_process_says():
    assert gather_texts(["a", "ü"]) == ["a", "ü"]
    assert of_first([3, 5]) == [3, 5]


def test_a_signal_is_noted_once_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    before_int = signal.getsignal(signal.SIGINT)  # ignored where a shell has started this in the background
    request = StopRequest()
    assert not request.at(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.at(1)
    assert signal.getsignal(signal.SIGTERM) is before  # a second signal is not held back
    request.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is before_int
