"""The launch scripts for SLURM on a real cluster: a private one on this machine, started and stopped by this test."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy_config
from toy_dataset import write_dataset
from toy_selected import write_selected

from synthclip_jax.model.checkpoint_files import checkpoint_folder, saved_steps
from synthclip_jax.model.loading import load_model
from synthclip_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 42  # 112 examples, batch 16, 6 epochs
TIMES = {"examples_per_second", "data_wait", "seconds"}

for program in ("slurmctld", "slurmd", "munged", "sbatch"):
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip(f"{program} is not installed (Debian: slurm-wlm)", allow_module_level=True)
if os.geteuid() != 0:
    pytest.skip("a private SLURM cluster needs root", allow_module_level=True)

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=1
JobRequeue=1
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN Gres=gpu:2
PartitionName=all Nodes={host} Default=YES State=UP MaxTime=INFINITE OverSubscribe=FORCE:4
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_for(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)


class Cluster:
    """One node with two CPUs and two GPUs that are only numbers."""

    def __init__(self, folder):
        self.folder, host = folder, socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(CONFIG.format(host=host, ports=free_ports(2), folder=folder))
        for index in range(2):
            (folder / f"gpu{index}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
        self.environment = {
            **os.environ,
            "PATH": path,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": " ".join(flags),
        }
        files = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")}
        self.daemons = []
        self.start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files.values())
        wait_for((folder / "munge.socket").exists, "socket of munged")
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", host)

    def start(self, *command):
        with (self.folder / "daemons.log").open("a") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def wait_until_idle(self):
        reason = lambda: self.run("sinfo", "-h", "-N", "-o", "%t %E")  # noqa: E731
        wait_for(lambda: "idle" in reason(), f"idle node: {reason()}")

    def run(self, *command, cwd=None):
        result = subprocess.run(command, env=self.environment, cwd=cwd, text=True, capture_output=True)
        return result.stdout if result.returncode == 0 else result.stderr

    def submit(self, workdir):
        """Submits two tasks that train; returns the job's number. Its output goes to `workdir/job.txt`."""
        options = ["--parsable", "--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=1", "--time=30"]
        flags = [f"--config={toy_config.__file__}", f"--workdir={workdir}", "--config.train.epochs=6"]
        flags += ["--config.train.peer_timeout=20"]
        script = str(ROOT / "launch" / "slurm.sbatch")
        out = self.run("sbatch", *options, f"--output={workdir}/job.txt", script, *flags, cwd=ROOT)
        assert re.fullmatch(r"\d+\n", out), out
        return out.strip()

    def state(self, job):
        return re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job)).group(1)

    def close(self):
        self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.wait_until_idle()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def new_workdir(tmp_path):
    def new(name):
        write_dataset(tmp_path / name / "dataset" / "toy" / "1.0.0")
        return tmp_path / name

    return new


def logged(workdir):
    lines = read_metrics(workdir / "train" / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def wait_until_complete(cluster, job, workdir):
    text = lambda: (workdir / "job.txt").read_text() if (workdir / "job.txt").exists() else ""  # noqa: E731
    wait_for(lambda: cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), f"end:\n{text()}", 400)
    assert cluster.state(job) == "COMPLETED", text()
    return text()


def begin(cluster, job, workdir, least):
    """Makes a job that was put back start now: SLURM holds it for two minutes otherwise."""

    def started():
        if cluster.state(job) == "PENDING":
            cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        return len(re.findall("^(starting from scratch|continuing at step)", output.read_text(), re.MULTILINE)) > least

    output = workdir / "job.txt"
    # SLURM tells starts of a job apart by the second: one within the second of the last end would be refused.
    wait_for(lambda: cluster.state(job) == "PENDING", "job in the queue", 200)
    time.sleep(2)
    wait_for(started, f"start number {least + 1}", 200)


def test_a_job_that_is_preempted_and_one_that_is_requeued_end_like_one_that_was_left_alone(cluster, new_workdir):
    alone, disturbed = new_workdir("alone"), new_workdir("disturbed")
    job = cluster.submit(alone)
    text = wait_until_complete(cluster, job, alone)
    assert "2 process(es)" in text  # found from SLURM's variables

    job = cluster.submit(disturbed)
    # As a preemption does: the tasks save, end with status 0, and the job puts itself back.
    wait_for(lambda: len(read_metrics(disturbed / "train" / "metrics.jsonl")) >= 1, "line of the log", 200)
    cluster.run("scancel", "--signal=TERM", job)
    wait_for(lambda: "back into the queue" in (disturbed / "job.txt").read_text(), "requeue", 200)
    step = max(saved_steps(checkpoint_folder(disturbed)))
    assert 7 <= step < STEPS
    begin(cluster, job, disturbed, least=1)
    # And as an administrator does: everything is ended, and the job queued again.
    wait_for(lambda: max(saved_steps(checkpoint_folder(disturbed))) > step, "later checkpoint", 200)
    cluster.run("scontrol", "requeue", job)
    begin(cluster, job, disturbed, least=2)
    text = wait_until_complete(cluster, job, disturbed)

    assert f"continuing at step {step}" in text
    assert logged(disturbed) == logged(alone)
    ours, theirs = load_model(disturbed), load_model(alone)
    assert ours.step == theirs.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


GENERATION = """
from synthclip_jax.config import default_config

def get_config():
    config = default_config()
    config.name = "toy"
    config.gen.images.update(engine="sprites", size=64, shard_size=18, per_caption=90)
    return config
"""


def test_an_array_shares_the_generation_and_a_requeued_task_goes_on(cluster, tmp_path):
    write_selected(tmp_path)
    (tmp_path / "config.py").write_text(GENERATION)
    options = ["--parsable", "--array=0-1", "--cpus-per-task=1", "--time=30", f"--output={tmp_path}/job%a.txt"]
    flags = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}", "--stages=images"]
    job = cluster.run("sbatch", *options, str(ROOT / "launch" / "slurm_gen.sbatch"), *flags, cwd=ROOT).strip()
    assert re.fullmatch(r"\d+", job), job
    commits = tmp_path / "gen" / "images" / "commits"
    wait_for(lambda: commits.exists() and len(list(commits.glob("[0-9]*.json"))) >= 2, "second shard", 200)
    cluster.run("scontrol", "requeue", f"{job}_0")
    outputs = [tmp_path / f"job{task}.txt" for task in range(2)]
    done = lambda output: output.exists() and "images: done" in output.read_text()  # noqa: E731

    def ended():
        if all(map(done, outputs)):
            return True
        time.sleep(3)  # see `begin`
        cluster.run("scontrol", "update", f"JobId={job}_0", "StartTime=now")
        return False

    wait_for(ended, "end: " + "".join(path.read_text() for path in outputs if path.exists()), 300)
    records = [json.loads(path.read_bytes()) for path in commits.glob("[0-9]*.json")]
    assert len(records) == 25
    assert sum(record["count"] + sum(record["rejects"].values()) for record in records) == 450
