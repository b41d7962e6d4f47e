"""The executor `ray` on a real cluster of this machine: same plan, same records and same bytes as `local`."""

import json
import os
import pathlib
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from toy_bank import write_bank
from toy_work import BANK, Fails, PoisonedWriter, config, counting_worker, expected, make_store, plan_shards

from gen import balance, captions, progress
from gen.captions import CaptionWorker
from gen.concepts import load_bank
from gen.engines.isolation import REASON
from gen.engines.registry import caption_engine, image_engine
from gen.shards.executor import make_executor
from gen.shards.local import run_local
from synthclip_jax.files.locations import location
from synthclip_jax.files.storage import StoreError

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
from gen.shards.ray import WorkersFailed  # noqa: E402

TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs, no dashboard, as small as can be; workers find the tests' modules."""
    environment = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "XLA_FLAGS": ""}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = ray.init(
        address="local",
        num_cpus=2,
        resources={"TPU": 4},
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        runtime_env={"env_vars": environment},
        logging_level="error",
    )
    yield context
    ray.shutdown()


def executor(workers=1, **values):
    settings = config()
    settings.gen.ray.update(values)
    settings.gen.ray.images.workers_min = workers
    return make_executor("ray", settings.gen)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


@pytest.mark.usefixtures("cluster")
def test_shards_are_made_once_by_several_workers_and_are_those_of_local(tmp_path):
    shards = plan_shards(24)
    ours, local = make_store(tmp_path / "ray"), make_store(tmp_path / "local")
    ours.commit(3, counting_worker()(shards[3]))
    records = executor(workers=2)(ours, shards, counting_worker, label="images", unit="items")
    assert list(records) == list(range(24))
    run_local(local, shards, counting_worker, label="images", unit="items")
    assert files(tmp_path / "ray") == files(tmp_path / "local") == expected(24)
    ours_there, theirs = ours.committed(), local.committed()
    for index, record in records.items():
        assert record == ours_there[index]
        same = ("shard", "plan", "count", "rejects", "files")
        assert {key: record[key] for key in same} == {key: theirs[index][key] for key in same}
    assert len({record["worker"] for record in records.values()} - {os.getpid()}) == 2
    again = executor()(ours, shards, Fails("no worker may be built"), label="images", unit="items")
    assert again == records


@pytest.mark.usefixtures("cluster")
def test_every_thousandth_caption_is_poisoned_and_only_those_are_rejected(tmp_path):
    settings = config()
    settings.gen.captions.update(shard_size=250)
    results = {}
    for name in ("local", "ray"):
        workdir, store = tmp_path / name, make_store(tmp_path / name / "out")
        write_bank(workdir, [f"thing{number}" for number in range(1, 3001)])
        shards = [{"index": index, "of": 12, "items": 250} for index in range(12)]
        make_executor(name, settings.gen)(
            store,
            shards,
            lambda workdir=workdir: CaptionWorker(PoisonedWriter(), load_bank(workdir), settings),
            label="captions",
            unit="captions",
        )
        assert sum(record["count"] for record in store.committed().values()) == 2997
        results[name] = {path.name: path.read_bytes() for path in store.folder.glob("*.parquet")}
    assert results["local"] == results["ray"]
    rejects = [row for path in sorted(store.folder.glob("rejects-*")) for row in pq.read_table(path).to_pylist()]
    assert [(row["concept"], row["reason"]) for row in rejects] == [
        (f"thing{number}", "error: ZeroDivisionError") for number in (1000, 2000, 3000)
    ]


@pytest.mark.usefixtures("cluster")
def test_a_worker_gets_the_gpus_that_its_engine_can_use(monkeypatch, capfd):
    def gpus(stage, **values):
        settings = config()
        settings.gen.captions.update(engine="vllm", tensor_parallel=2)
        settings.gen.images.update(engine="diffusers")
        settings.gen[stage].update(values)
        kinds = {"captions": caption_engine, "images": image_engine}
        wanted = kinds[stage](settings.gen[stage]).gpus(settings.gen[stage]) if stage in kinds else 0
        return make_executor("ray", settings.gen)._gpus(stage, settings.gen.ray[stage], wanted)

    assert gpus("images") == gpus("captions") == gpus("balance") == 0  # this machine has none, and is alone
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # machines may join
    assert (gpus("images"), gpus("captions"), gpus("balance")) == (1, 2, 0)
    assert "--config.gen.ray.captions.gpus=0 uses CPUs" in capfd.readouterr().err
    assert gpus("captions", engine="templates") == gpus("images", engine="sprites") == 0
    settings = config()
    settings.gen.ray.images.gpus = 0.5  # two workers on a GPU
    assert make_executor("ray", settings.gen)._gpus("images", settings.gen.ray.images, 1) == 0.5


@pytest.mark.usefixtures("cluster")
def test_a_worker_takes_the_chips_of_a_tpu_host_and_no_gpu(tmp_path, capfd):
    settings = config()
    settings.gen.images.update(engine="flax")
    settings.gen.ray.images.tpus = 4
    on_tpus = make_executor("ray", settings.gen)
    asked = on_tpus._resources("images", settings.gen.ray.images, 1)
    assert asked == {"num_cpus": 1, "num_gpus": 0, "resources": {"TPU": 4}}
    records = on_tpus(make_store(tmp_path), plan_shards(3), counting_worker, label="images", unit="items")
    assert len({record["worker"] for record in records.values()}) == 1  # there is one such host
    assert "1 CPU, 4 TPU chips and 0 GPU each" in capfd.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_an_error_that_says_what_to_change_ends_the_job_with_its_own_type(tmp_path):
    with pytest.raises(captions.CaptionError, match="change the prompt"):
        executor()(make_store(tmp_path), plan_shards(4), Fails("explained"), label="images", unit="items")


@pytest.mark.usefixtures("cluster")
def test_a_full_disk_ends_the_job_and_the_next_run_makes_what_is_missing(tmp_path):
    store, shards = make_store(tmp_path), plan_shards(6)
    (tmp_path / "4.bin").mkdir()  # cannot be replaced by a file
    with pytest.raises(StoreError, match=r"4\.bin"):
        executor()(store, shards, counting_worker, label="images", unit="items")
    (tmp_path / "4.bin").rmdir()
    executor()(store, shards, counting_worker, label="images", unit="items")
    assert files(tmp_path) == expected(6)


@pytest.mark.usefixtures("cluster")
def test_an_engine_failure_ends_the_process_and_the_shard_is_made_by_another(tmp_path):
    store, shards = make_store(tmp_path), plan_shards(6)
    records = executor()(store, shards, Fails("once", tmp_path / "mark"), label="images", unit="items")
    assert files(tmp_path) == expected(6)
    # Ray hands shards to a process in any order: it may have made a later one before it failed, and none after that.
    broken = int((tmp_path / "mark").read_text())
    assert records[2]["worker"] != broken
    with pytest.raises(ProcessLookupError):
        os.kill(broken, 0)
    assert not list((tmp_path / "failures").iterdir())  # nothing is left to tell


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_shard_whose_process_dies_again_and_again_without_a_word_does_not_go_on_for_ever(tmp_path):
    store, shards = make_store(tmp_path), plan_shards(4)
    with pytest.raises(WorkersFailed, match=r"shard 2: its worker died 20 times"):
        executor()(store, shards, Fails("killed"), label="images", unit="items")
    assert sorted(store.committed()) == [0, 1, 3]


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_always_ends_its_worker_is_named_and_the_others_are_made(tmp_path):
    store, shards = make_store(tmp_path), plan_shards(6)
    with pytest.raises(WorkersFailed, match=r"1 of 6 shards .*2 times:\n  shard 2: RuntimeError: CUDA error"):
        executor(tries=2)(store, shards, Fails("always"), label="images", unit="items")
    assert sorted(store.committed()) == [0, 1, 3, 4, 5]
    note, _ = sorted((tmp_path / "failures").glob("*-error-*"))
    assert "Traceback" in json.loads(note.read_bytes())["traceback"]


@pytest.mark.usefixtures("cluster")
def test_captions_and_matching_run_on_it_and_give_the_same_bytes(tmp_path):
    settings = config()
    results = {}
    for name in ("local", "ray"):
        workdir = tmp_path / name
        write_bank(workdir, BANK)
        run = make_executor(name, settings.gen)
        summary = captions.run(settings, workdir, run)
        assert summary["captions"] == len(BANK)
        balance.run(settings, workdir, run)
        results[name] = {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*.parquet")}
    assert results["local"] == results["ray"]
    assert any("matches" in name for name in results["ray"])
    captions_line, balance_line, images_line = progress.stage_lines(tmp_path / "ray")
    assert captions_line.startswith(f"captions: {len(BANK)}/{len(BANK)} captions")
    assert balance_line.startswith(f"balance: {len(BANK)}/{len(BANK)} captions")
    assert images_line == "images: not begun"
    assert REASON not in captions_line


def test_the_command_starts_a_cluster_of_its_own_and_works_in_an_object_store(tmp_path):
    """In a process of its own, as users start it."""
    for package in ("moto", "boto3", "s3fs"):
        pytest.importorskip(package)
    from s3_server import running_server

    (tmp_path / "list.txt").write_text("dog\ncat\ncar\npizza\n")
    command = [sys.executable, "-m", "gen", "--executor=ray", "--workdir=s3://bucket/run"]
    command += ["--stages=concepts,captions,balance"]
    command += [f"--config={TESTS}/toy_work.py", f"--config.gen.concepts.lists={tmp_path}/list.txt"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    with running_server() as server:
        server.make_bucket("bucket")
        result = subprocess.run(
            command, text=True, capture_output=True, env=environment | server.environment, timeout=300
        )
        assert result.returncode == 0, result.stderr
        lines = progress.stage_lines(location("s3://bucket/run"))
    assert "captions: 4/4 captions" in result.stderr
    assert "captions: done" in result.stdout
    assert [line.partition("  ")[0] for line in lines[:2]] == ["captions: 4/4 captions", "balance: 4/4 captions"]


def test_an_address_where_no_cluster_is_says_so(tmp_path):
    command = [sys.executable, "-m", "gen", "--executor=ray", f"--workdir={tmp_path}", "--stages=captions"]
    command += [f"--config={TESTS}/toy_work.py", "--config.gen.concepts.lists=list.txt"]
    write_bank(tmp_path, BANK)
    environment = {**os.environ, "RAY_ADDRESS": "nowhere", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    result = subprocess.run(command, text=True, capture_output=True, env=environment, timeout=300)
    assert result.returncode == 1
    assert "RAY_ADDRESS=nowhere: no Ray cluster can be used" in result.stderr
