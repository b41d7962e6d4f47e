"""The launch scripts: clean shell, commands that the installed tools accept, and what they do when things go wrong."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh")) + sorted(LAUNCH.glob("*.sbatch"))
PATIENCE = 300  # seconds for what must happen, however busy the machine is
TRAINING = ["--", "--config=configs/synthci_30m.py", "--workdir=/mnt/run", "--config.train.profile=(3, 4)"]
POD = ["--name=run1", "--zone=us-east5-a", "--type=v5litepod-64", "--spot", "--nfs=10.0.0.2:/share", "--project=p"]
SLICE = ["--name=run1", "--image=registry/image", "--accelerator=tpu-v5-lite-podslice", "--topology=8x8", "--hosts=16"]
SLICE += ["--claim=runs"]
GENERATION = ["--", "--config=configs/synthci_30m.py", "--workdir=gs://bucket/run", '--config.gen.images.model=a "b" c']
RAY_GCP = ["--name=run1", "--project=p", "--zone=us-central1-a", "--workers=1:16", "--spot"]
KUBERAY = ["--name=run1", "--image=registry/image", "--workers=0:16", "--accelerator=nvidia-l4", "--spot"]


def launch(script, *arguments, **environment):
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )


def dry_run(script, *arguments):
    result = launch(script, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    result = subprocess.run(["shellcheck", "-x", *map(str, SCRIPTS)], text=True, capture_output=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_and_explains_itself(script):
    assert os.access(script, os.X_OK)
    result = launch(script, "--help")
    assert result.returncode == 0
    assert "--dry-run" in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", ["create", "--name=x"], "--name and --zone are needed"),
        ("tpu_vm.sh", ["create", *POD, "--type=v9-8"], "v5litepod"),
        ("tpu_vm.sh", ["start", *POD], "what to train is missing"),
        ("tpu_vm.sh", ["create", *POD, "--zome=x"], "unknown argument --zome=x"),
        ("gke.sh", ["apply", "--name=x"], "--image is needed"),
        ("tpu_vm.sh", ["start", *POD, "--module=gen"], "what to generate is missing"),
        ("tpu_vm.sh", ["start", *POD, "--module=synthclip_jax.embed"], "allowed: synthclip_jax.train, gen"),
        ("tpu_host.sh", ["--chips=3", "--", "--config=x"], "allowed: 1, 4, 8"),
        ("tpu_host.sh", [], "what to generate is missing"),
        ("gpus.sh", ["--config=x"], "flags for training come after --"),
        ("ray_gcp.sh", ["up", "--name=x"], "--project is needed"),
        ("ray_gcp.sh", ["up", *RAY_GCP, "--workers=4"], "MIN:MAX is needed"),
        ("ray_gcp.sh", ["run", *RAY_GCP], "what to generate is missing"),
        ("kuberay.sh", ["apply", "--name=x"], "--image is needed"),
        ("kuberay.sh", ["apply", *KUBERAY, "--workers=4:2", *GENERATION], "MIN:MAX is needed"),
        ("kuberay.sh", ["apply", *KUBERAY], "what to generate is missing"),
    ],
)
def test_wrong_arguments_are_named(script, arguments, message):
    result = launch(script, *arguments)
    assert result.returncode == 2
    assert message in result.stderr


# ---- What the tools say of the commands ----------------------------------------------------------------------------

ACTIONS = ("create", "install", "start", "logs", "status", "stop", "delete", "keep")


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_accepts_every_command():
    commands = {
        shlex.join(command)
        for action in ACTIONS
        for command in dry_run("tpu_vm.sh", action, *POD, *TRAINING)
        if command[0] == "gcloud"
    }
    assert len(commands) >= 8
    for command in commands:
        # What is run on the workers is no matter of gcloud's, and its linter cannot take quotes.
        plain = " ".join("--command=x" if word.startswith("--command=") else word for word in shlex.split(command))
        lint = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={plain}"], text=True, capture_output=True
        )
        (verdict,) = json.loads(lint.stdout)
        assert verdict["success"], f"{plain}: {verdict['error_message']}"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("script", ["gke.sh", "kuberay.sh"])
@pytest.mark.parametrize("action", ["apply", "logs", "status", "delete"])
def test_kubectl_knows_every_flag(script, action):
    arguments = [*SLICE, *TRAINING] if script == "gke.sh" else [*KUBERAY, *GENERATION]
    command = shlex.split(launch(script, action, "--dry-run", *arguments).stdout.splitlines()[-1])
    assert command[0] == "kubectl"
    result = subprocess.run([*command, "--help"], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert subprocess.run([*command, "--no-such-flag", "--help"], capture_output=True).returncode != 0


def test_the_manifest_is_a_jobset_that_runs_the_command_on_every_host():
    yaml = pytest.importorskip("yaml")
    result = launch("gke.sh", "apply", "--dry-run", *SLICE, *TRAINING, '--config.name=a"b')
    manifest = yaml.safe_load(result.stdout.split("\n...\n")[0])
    assert manifest["kind"] == "JobSet"
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 16
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    (container,) = pod["containers"]
    assert container["args"] == [*TRAINING[1:], '--config.name=a"b']
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


# ---- Generation ----------------------------------------------------------------------------------------------------


def documents(script, action, *arguments):
    """The first YAML document and the command that a dry run prints."""
    yaml = pytest.importorskip("yaml")
    result = launch(script, action, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    manifest, _, command = result.stdout.partition("\n...\n")
    return next(yaml.safe_load_all(manifest)), shlex.split(command)


@pytest.mark.parametrize("machine", ["g2-standard-12", "n1-standard-8"])
def test_ray_accepts_the_cluster_file(machine):
    util = pytest.importorskip("ray.autoscaler._private.util")
    cluster, command = documents("ray_gcp.sh", "up", *RAY_GCP, f"--machine={machine}", "--gpu=nvidia-tesla-t4")
    util.validate_config(util.prepare_config(cluster))  # Ray's own schema
    with pytest.raises(Exception, match="no_such_key"):
        util.validate_config(util.prepare_config(cluster | {"no_such_key": 1}))
    workers = cluster["available_node_types"]["gpu"]
    assert (workers["min_workers"], workers["max_workers"]) == (1, 16)
    assert workers["resources"] == {"CPU": int(machine.rpartition("-")[2]), "GPU": 1}
    assert workers["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert ("guestAccelerators" in workers["node_config"]) == machine.startswith("n1")
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert command[:2] == ["ray", "up"]


@pytest.mark.parametrize("action", ["up", "run", "logs", "status", "down"])
def test_ray_knows_every_flag(action):
    click = pytest.importorskip("click.testing")
    scripts = pytest.importorskip("ray.scripts.scripts")
    _, command = documents("ray_gcp.sh", action, *RAY_GCP, *(GENERATION if action == "run" else ()))
    assert command[0] == "ray"
    for flag, accepted in (("--help", True), ("--no-such-flag", False)):
        result = click.CliRunner().invoke(scripts.cli, [*command[1:3], flag])
        assert (result.exit_code == 0) == accepted, result.output


def test_what_runs_on_the_head_is_the_generation_with_its_flags_unchanged(tmp_path):
    """The remote command is run here, with a stand-in for Python that notes its arguments."""
    _, command = documents("ray_gcp.sh", "run", *RAY_GCP, *GENERATION)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "synthclip_jax").mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$RAY_ADDRESS" "$@"\n')
    python.chmod(0o755)
    subprocess.run(["bash", "-c", command[-1]], cwd=tmp_path, check=True, timeout=PATIENCE)
    lines = (tmp_path / "synthclip_jax" / "gen.log").read_text().splitlines()
    assert lines[-7:] == ["auto", "-m", "gen", "--executor=ray", *GENERATION[1:]]


def test_the_ray_job_runs_the_command_on_workers_between_two_numbers():
    job, _ = documents("kuberay.sh", "apply", *KUBERAY, "--gpus=2", "--claim=runs", *GENERATION)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert shlex.split(job["spec"]["entrypoint"]) == ["python", "-m", "gen", "--executor=ray", *GENERATION[1:]]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, 16)
    pods = [cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == "registry/image"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["volumeMounts"] == [{"name": "workdir", "mountPath": "/workdir"}]
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pods[1]["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_without_a_claim_the_pods_mount_nothing():
    job, _ = documents("kuberay.sh", "apply", *KUBERAY, *GENERATION)
    assert "volume" not in json.dumps(job)


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for Python and SLURM; the environment of a task of an array that finds them."""
    (tmp_path / "python").write_text('#!/bin/sh\ntouch "$0.started"\nexec sleep 3600\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return environment | {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}


def test_the_array_is_stopped_put_back_and_ends_with_the_status_of_its_work(tmp_path, slurm):
    process = subprocess.Popen([str(LAUNCH / "slurm_gen.sbatch"), "--config=c"], env=slurm)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "python.started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 128 + signal.SIGTERM
    assert (tmp_path / "told").read_text() == "requeue 7_3\n"
    (tmp_path / "told").unlink()
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    assert subprocess.run([str(LAUNCH / "slurm_gen.sbatch"), "--config=c"], env=slurm).returncode == 3
    assert not (tmp_path / "told").exists()  # a failure is no reason to try again


MOMENTS = ("case", "status=143", '"${command[@]}"', "generation=$!", "kill -0", "sleep", "wait $!")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_sigterm_at_any_moment_ends_the_work_of_the_array_and_puts_it_back(tmp_path, slurm, moment):
    """Bash itself sends the signal, before the command that begins so: no two processes have to meet by chance."""
    sender = tmp_path / "sender"
    sender.write_text(
        'send() { case "$BASH_COMMAND" in "$MOMENT"*) trap - DEBUG; kill -TERM $$ ;; esac; }\ntrap send DEBUG\n'
    )
    process = subprocess.Popen(
        [str(LAUNCH / "slurm_gen.sbatch"), "--config=c"],
        env={**slurm, "BASH_ENV": str(sender), "MOMENT": moment},
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=PATIENCE) == 128 + signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "told").read_text() == "requeue 7_3\n"


def test_a_host_of_tpus_generates_by_itself_with_its_own_part(tmp_path):
    """What `tpu_vm.sh` sends to a worker is run here, with a stand-in for Python and the variables of the last host."""
    command = next(
        word
        for word in dry_run("tpu_vm.sh", "start", *POD, "--module=gen", "--chips=8", *GENERATION)[0]
        if word.startswith("--command=")
    )
    python = tmp_path / "synthclip_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nenv | grep ^TPU_ | sort\nprintf "%s\\n" "$@"\necho done\n')
    python.chmod(0o755)
    shutil.copytree(LAUNCH, tmp_path / "synthclip_jax" / "launch")
    slice_of = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}
    environment = {"PATH": os.environ["PATH"], **slice_of}
    remote = command.removeprefix("--command=")
    subprocess.run(["sh", "-c", remote], cwd=tmp_path, env=environment, check=True, timeout=PATIENCE)
    log = tmp_path / "synthclip_jax" / "gen.log"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and "done" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    alone = {"CHIPS_PER_PROCESS_BOUNDS": "2,4,1", "PROCESS_BOUNDS": "1,1,1", "WORKER_HOSTNAMES": "localhost"}
    variables = [f"TPU_{name}={value}" for name, value in (alone | {"WORKER_ID": "0"}).items()]
    assert log.read_text().splitlines() == [*variables, "-m", "gen", "--part=3/4", *GENERATION[1:], "done"]


def test_where_nothing_says_which_host_this_is_the_host_stops(tmp_path):
    (tmp_path / "curl").write_text("#!/bin/sh\nexit 22\n")
    (tmp_path / "curl").chmod(0o755)
    result = launch("tpu_host.sh", *GENERATION, PATH=f"{tmp_path}:{os.environ['PATH']}", TPU_WORKER_ID="")
    assert (result.returncode, "says which host this is" in result.stderr) == (2, True)


def test_the_pods_of_a_slice_generate_each_by_itself():
    manifest, _ = documents("gke.sh", "apply", *SLICE, "--module=gen", *GENERATION)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["launch/tpu_host.sh", "--chips=4", "--"]
    assert container["args"] == GENERATION[1:]


# ---- Training ------------------------------------------------------------------------------------------------------


def test_what_runs_on_the_workers_is_the_training_command_with_its_flags_unchanged(tmp_path):
    """The remote command is run here, with a stand-in for Python that notes its arguments."""
    command = next(word for word in dry_run("tpu_vm.sh", "start", *POD, *TRAINING)[0] if word.startswith("--command="))
    python = tmp_path / "synthclip_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho done\n')
    python.chmod(0o755)
    subprocess.run(["sh", "-c", command.removeprefix("--command=")], cwd=tmp_path, check=True, timeout=PATIENCE)
    log = tmp_path / "synthclip_jax" / "train.log"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and "done" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert log.read_text().splitlines() == ["-m", "synthclip_jax.train", *TRAINING[1:], "done"]


STRANGE = [
    "--a=tab\there",
    "--b=it's",
    "--c=\u00e9\u56fe $(touch INJECTED); `touch INJECTED`",
    '--d=two\nlines \\ "q"',
    "",
]
# A gcloud that runs what it is told to run on the workers in this folder, as root or not, and notes all else.
WORKER = """#!/usr/bin/env bash
cd "$(dirname "$0")"
for word in "$@"; do
  case "$word" in
    --command=*) bash -c "${word#--command=}" ;;
    *) printf '%s\\0' "$word" >> words ;;
  esac
done
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_strange_flags_reach_the_workers_as_they_are_and_nothing_in_them_is_run(tmp_path, locale):
    python = tmp_path / "synthclip_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > ../noted\ntouch ../done\n')
    (tmp_path / "gcloud").write_text(WORKER)
    for file in (python, tmp_path / "gcloud"):
        file.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = launch("tpu_vm.sh", "start", *POD, "--", *STRANGE, PATH=path, LC_ALL=locale)
    assert result.returncode == 0, result.stderr
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (tmp_path / "noted").read_text().split("\0")[:-1] == ["-m", "synthclip_jax.train", *STRANGE]
    assert not list(tmp_path.rglob("INJECTED"))


def test_the_workdir_on_the_share_is_the_users_own_folder_and_the_share_is_not_opened_to_all(tmp_path):
    share = "/mnt/synthclip/run 1"
    (command,) = dry_run("tpu_vm.sh", "start", *POD, "--", f"--workdir={share}")
    remote = next(word for word in command if word.startswith("--command=")).removeprefix("--command=")
    (tmp_path / "sudo").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 1\n')  # and so it goes no further
    (tmp_path / "sudo").chmod(0o755)
    result = subprocess.run(
        ["bash", "-c", remote],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 1
    assert result.stdout.splitlines() == ["install", "-d", "-o", str(os.getuid()), "-g", str(os.getgid()), share]
    assert "chmod" not in launch("tpu_vm.sh", "install", "--dry-run", *POD).stdout


def test_the_archive_of_the_code_is_made_in_a_folder_that_no_one_else_can_prepare(tmp_path):
    (tmp_path / "gcloud").write_text(
        '#!/bin/sh\nfor word in "$@"; do case "$word" in *.gz) ls -ld "$(dirname "$word")"; echo "$word";; esac; done\n'
    )
    (tmp_path / "git").write_text("#!/bin/sh\n")
    for name in ("gcloud", "git"):
        (tmp_path / name).chmod(0o755)
    places = set()
    for _ in range(2):
        result = launch("tpu_vm.sh", "install", *POD, PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert result.returncode == 0, result.stderr
        listing, archive = result.stdout.splitlines()
        assert listing.startswith("drwx------")
        assert archive.endswith("/synthclip_jax.tar.gz")
        assert not os.path.exists(os.path.dirname(archive))  # and nothing is left
        places.add(archive)
    assert len(places) == 2


@pytest.mark.parametrize(
    ("script", "arguments", "key"),
    [
        ("tpu_vm.sh", ["install", *POD, '--nfs=10.0.0.2:/a"; touch INJECTED; "'], "--nfs"),
        ("tpu_vm.sh", ["create", *POD, "--name=-x"], "--name"),
        ("tpu_vm.sh", ["create", *POD, "--project=p q"], "--project"),
        ("tpu_vm.sh", ["keep", *POD, "--wait=$(touch INJECTED)", *TRAINING], "--wait"),
        ("tpu_vm.sh", ["start", *POD, "--", "--a=\x1b[2J"], "control characters"),
        ("gke.sh", ["apply", *SLICE, "--name=run1\nspec: {}", *TRAINING], "--name"),
        ("gke.sh", ["apply", *SLICE, "--image=a\n    securityContext: {privileged: true}", *TRAINING], "--image"),
        ("gke.sh", ["apply", *SLICE, "--hosts=16\n", *TRAINING], "--hosts"),
        ("gke.sh", ["apply", *SLICE, "--claim=runs # x", *TRAINING], "--claim"),
        ("gke.sh", ["delete", "--name=--all"], "--name"),
        ("kuberay.sh", ["apply", *KUBERAY, "--image=a: b", *GENERATION], "--image"),
        ("kuberay.sh", ["apply", *KUBERAY, "--gpus=1, privileged", *GENERATION], "--gpus"),
        ("kuberay.sh", ["apply", *KUBERAY, "--memory=1Gi\n", *GENERATION], "--memory"),
        ("ray_gcp.sh", ["up", *RAY_GCP, "--extra=gen]'; touch INJECTED; '"], "--extra"),
        ("ray_gcp.sh", ["up", *RAY_GCP, "--zone=us\ntype: aws"], "--zone"),
        ("gpus.sh", ["--processes=2;x", "--", "--config=c"], "--processes"),
    ],
)  # fmt: skip
def test_names_that_would_be_more_than_names_are_refused_in_one_line(script, arguments, key):
    result = launch(script, "--dry-run", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert key in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_kubernetes_would_replace_in_a_flag_reaches_the_container_as_it_is():
    """Kubernetes reads $(NAME) as a variable and $$ as a dollar sign, whatever else stands there."""
    yaml = pytest.importorskip("yaml")
    flags = [*STRANGE, "--e=$(HOME) $$ $x 1: 2 # no comment"]
    manifest = launch("gke.sh", "apply", "--dry-run", *SLICE, "--", *flags).stdout.split("\n...\n")[0]
    pod = yaml.safe_load(manifest)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    given = pod["containers"][0]["args"]
    assert all(text.replace("$$", "").count("$") == 0 for text in given)
    assert [text.replace("$$", "$") for text in given] == flags


def test_only_the_job_and_its_operator_reach_the_ports_of_ray():
    yaml = pytest.importorskip("yaml")
    manifest = launch("kuberay.sh", "apply", "--dry-run", *KUBERAY, *GENERATION).stdout.split("\n...\n")[0]
    assert "0.0.0.0" not in manifest
    job, policy = yaml.safe_load_all(manifest)
    assert policy["kind"] == "NetworkPolicy"
    (rule,) = policy["spec"]["ingress"]
    assert all("podSelector" in source and source["podSelector"]["matchLabels"] for source in rule["from"])
    labels = policy["spec"]["podSelector"]["matchLabels"]
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()


def test_machines_of_a_ray_cluster_get_no_more_rights_than_they_use():
    cluster, _ = documents("ray_gcp.sh", "up", *RAY_GCP)
    scopes = {
        kind: {scope.rpartition("/")[2] for scope in node["node_config"]["serviceAccounts"][0]["scopes"]}
        for kind, node in cluster["available_node_types"].items()
    }
    storage = {"devstorage.read_write", "logging.write", "monitoring.write"}
    assert scopes == {"head": {*storage, "compute"}, "gpu": storage}


# ---- A preemption --------------------------------------------------------------------------------------------------

FAKE_GCLOUD = """#!/usr/bin/env bash
# A cloud of one queued resource: preempted once while training, and finished after the second start.
cd "$(dirname "$0")"
echo "$*" >> calls
case "$*" in
  *queued-resources\\ create*) echo ACTIVE > state ;;
  *queued-resources\\ delete*) rm -f state running ;;
  *queued-resources\\ describe*)
    [ -f state ] || exit 1
    if [ -f running ] && [ "$(grep -c nohup calls)" = 1 ]; then echo SUSPENDED > state; fi
    cat state ;;
  *grep*finished*) [ -f running ] && [ "$(grep -c nohup calls)" = 2 ] ;;
  *kill\\ -0*) [ -f running ] ;;
  *nohup*) touch running ;;
esac
"""


def test_a_preempted_pod_is_created_again_and_training_goes_on(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text(FAKE_GCLOUD)
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = launch("tpu_vm.sh", "keep", "--wait=0.05", *POD, *TRAINING, PATH=path)
    assert result.returncode == 0, result.stderr
    assert "training is finished" in result.stdout
    words = ("create", "delete", "scp", "nohup")
    told = [word for call in (tmp_path / "calls").read_text().splitlines() for word in words if f" {word} " in call]
    assert told == ["create", "scp", "nohup", "delete", "create", "scp", "nohup"]


# ---- Several processes on one machine ------------------------------------------------------------------------------


def test_one_process_per_gpu_gets_its_place_from_the_environment(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS,'
        ' GPU $CUDA_VISIBLE_DEVICES: $*"\n'
    )
    python.chmod(0o755)
    result = launch("gpus.sh", "--processes=2", "--", "--config=c", PYTHON=str(python), PORT="1234")
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        f"{index} of 2 at localhost:1234, GPU {index}: -m synthclip_jax.train --config=c" for index in range(2)
    ]


def test_a_process_that_fails_takes_the_others_with_it(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$JAX_PROCESS_ID" = 1 ] || exec sleep 3600\nexit 3\n')
    python.chmod(0o755)
    # The second one is waited for second: the first one has to learn of its failure.
    result = launch("gpus.sh", "--processes=2", "--", "--config=c", PYTHON=str(python))
    assert result.returncode == 3


def test_sigterm_reaches_all_processes_and_the_script_waits_for_them(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, signal, sys, time\n"
        "me = pathlib.Path(sys.argv[3]) / os.environ['JAX_PROCESS_ID']\n"
        "def stop(*_):\n    time.sleep(0.3)\n    me.with_suffix('.saved').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\nme.touch()\ntime.sleep(3600)\n"
    )
    python.chmod(0o755)
    process = subprocess.Popen(
        [str(LAUNCH / "gpus.sh"), "--processes=2", "--", str(tmp_path)], env={**os.environ, "PYTHON": str(python)}
    )
    deadline = time.monotonic() + PATIENCE
    while not all((tmp_path / name).exists() for name in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 0
    assert all((tmp_path / f"{name}.saved").exists() for name in "01")


@pytest.mark.parametrize("moment", ["children+=", "early", "sleep", "wait $!", "kill -0"])
def test_a_sigterm_at_any_moment_reaches_all_processes(tmp_path, moment):
    """Bash itself sends the signal, before the command that begins so."""
    sender, python = tmp_path / "sender", tmp_path / "python"
    sender.write_text(
        'send() { case "$BASH_COMMAND" in "$MOMENT"*) trap - DEBUG; kill -TERM $$ ;; esac; }\ntrap send DEBUG\n'
    )
    python.write_text("#!/bin/sh\nexec sleep 3600\n")
    python.chmod(0o755)
    process = subprocess.Popen(
        [str(LAUNCH / "gpus.sh"), "--processes=2", "--", "--config=c"],
        env={**os.environ, "PYTHON": str(python), "BASH_ENV": str(sender), "MOMENT": moment},
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=PATIENCE) == 128 + signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
