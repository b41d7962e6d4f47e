"""The executor `ray`: Ray Data over the shards of a stage, one shard = one row = one block, a pool of actors.

An actor holds a worker with its model and commits its shards itself; what comes back is the record. So a shard is as
done as with the executor `local`, and nothing depends on Ray's own memory of the job. Actors may join, leave and die at
any moment: Ray replaces them, and gives their shards to others.

A worker that raises what is wrong with its engine (memory, a GPU that faults) notes it in `STAGE/failures/` and ends
its process, since the next shard would fail in the same process, too; errors that say what to change end the job.
"""

import contextlib
import datetime
import json
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from gen.engines.isolation import is_explained
from gen.shards.local import Executor, Job, MakeWorker, Worker, made_worker
from gen.shards.progress import Committed
from gen.shards.store import StageStore
from synthclip_jax.config.generation import Gen, Workers
from synthclip_jax.devices import ray_cluster
from synthclip_jax.errors import is_unreachable
from synthclip_jax.files.locations import Location
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError, list_files, write_atomic

QUEUED = 2  # shards given to an actor at once, so that the next one is there when the last one ends
MAX_DEATHS = 20  # of the process around one shard without a word (preemptions, kills), after which it counts as failed


class WorkersFailed(StoreError):
    """Shards ended their worker again and again; the text says which, and of what."""


class RayExecutor(Executor):
    """Runs shards on the cluster that RAY_ADDRESS names, or on one that is started on this machine.

    Args:
      gen: `config.gen`; its section `ray` says what each worker of a stage takes.
    """

    is_local = False

    def __init__(self, gen: Gen):
        self.gen = gen

    def run(self, job: Job) -> None:
        """See `Executor`; the job's `make_worker` is pickled.

        Raises:
          StoreError: Ray is not installed or the cluster is gone; the storage fails; shards end their workers.
          Exception: what a worker raises that says what to change.
        """
        store, records, label = job.store, job.records, job.label
        ray_cluster.connect()
        settings = getattr(self.gen.ray, label, self.gen.ray.balance)  # what has no section needs a CPU, as that does
        resources = self._resources(label, settings, job.gpus)
        progress = Committed(sum(shard["items"] for shard in job.shards), job.unit, label)
        failures = store.folder / "failures"
        _clear(failures)
        failed: dict[int, str] = {}
        made = 0
        print(f"{label}: {_demand(job.todo, resources, settings)}", file=sys.stderr, flush=True)
        actor = (store, job.make_worker, self.gen.ray.tries, os.getcwd())
        rows = _rows(store, job.todo, actor, resources, settings, max(QUEUED, job.at_once))
        with contextlib.closing(rows), progress.shown(records):
            for row in rows:
                if row["error"]:
                    raise pickle.loads(row["error"])
                if row["failure"]:
                    failed[row["index"]] = row["failure"]
                    if len(failed) > max(made, 2):  # not those shards, but all that the workers do
                        break
                    continue
                records[row["index"]] = json.loads(row["record"])
                made += 1
        if failed:
            lines = "\n  ".join(f"shard {index}: {text}" for index, text in sorted(failed.items())[:10])
            raise WorkersFailed(
                f"{store.folder}: {len(failed)} of {len(job.shards)} shards ended their worker {self.gen.ray.tries}"
                f" times:\n  {lines}\nAll others are kept. {failures} has the whole texts. Remove the cause (a smaller"
                " batch_size needs less memory), and run the same command again"
            )
        _clear(failures)

    def _resources(self, label: str, settings: Workers, wanted: int) -> dict[str, Any]:
        """What a worker takes of the cluster, as Ray's tasks are told."""
        if settings.tpus:
            gpus, more = max(settings.gpus, 0.0), {"resources": {"TPU": settings.tpus}}
        else:
            gpus, more = self._gpus(label, settings, wanted), {}
        return {"num_cpus": settings.cpus, "num_gpus": gpus, **more}

    def _gpus(self, label: str, settings: Workers, wanted: int) -> float:
        """GPUs of one worker; -1 in the configuration: what it can use, if the cluster can have any."""
        if settings.gpus >= 0:
            return settings.gpus
        import ray

        if wanted and not ray.cluster_resources().get("GPU"):
            joined = os.environ.get("RAY_ADDRESS")  # a cluster that machines may still join
            note = (
                f"waiting for one that has; --config.gen.ray.{label}.gpus=0 uses CPUs"
                if joined
                else "so workers use its CPUs"
            )
            print(f"{label}: no machine of the Ray cluster has a GPU, {note}", file=sys.stderr, flush=True)
            return wanted if joined else 0
        return wanted


def _rows(
    store: StageStore,
    todo: Sequence[Mapping[str, Any]],
    actor: tuple[Any, ...],
    resources: Mapping[str, Any],
    settings: Workers,
    at_once: int,
) -> Generator[dict[str, Any], None, None]:
    """What `ShardActor` returns for each shard, as it comes.

    Raises:
      WorkersFailed: the cluster is gone.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray replaces actors and repeats what they were at without end: `ShardActor` counts.
    # An actor gets the next shard when it is ready for it, and not before: others may join until then. So the pool
    # grows as soon as all actors are busy.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    most = min(settings.workers_max or len(todo), len(todo))
    dataset = ray.data.from_items([{"shard": json.dumps(dict(shard))} for shard in todo], override_num_blocks=len(todo))
    dataset = dataset.map(
        ShardActor,
        fn_constructor_args=actor,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(settings.workers_min, most),
            max_size=most,
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
        **resources,
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise WorkersFailed(
            f"{store.folder}: Ray gave up ({str(error).strip().splitlines()[-1]}). What is committed is kept: run the"
            " same command again once the cluster is there"
        ) from error


class ShardActor:
    """Lives in a process of its own: makes and commits shards with one worker.

    Args:
      store: of the stage; its plan is there.
      make_worker: builds the worker when the first shard comes, so that what goes wrong then is reported like the rest.
      tries: how often a shard may end its process before it is given back as failed.
      folder: the driver's working folder, in which relative paths of the configuration lie, where this machine has it.
    """

    def __init__(self, store: StageStore, make_worker: MakeWorker, tries: int, folder: str):
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._store, self._make_worker, self._tries = store, make_worker, tries
        self._worker: Worker | None = None
        self._loading, self._clock = threading.Lock(), threading.Lock()
        self._room = threading.Semaphore(1)
        self._finished = 0.0

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Makes one shard, unless it is there.

        Returns:
          `index`, and one of `record` (JSON), `error` (a pickled exception that ends the job) and `failure` (a text).
        """
        shard = json.loads(row["shard"])
        index = shard["index"]
        result = {"index": index, "record": "", "error": b"", "failure": ""}
        try:
            if record := self._store.record(index):
                return result | {"record": json.dumps(record)}
            mark = self._mark(index)
            if mark is None:
                return result | {"failure": f"its worker died {MAX_DEATHS} times (killed or out of memory)"}
            record = self._make(shard)
            mark.unlink()
            return result | {"record": json.dumps(record)}
        except Exception as error:
            if is_explained(error) or isinstance(error, OSError | ImportError) or is_unreachable(error):
                return result | {"error": _pickled(error)}
            return result | {"failure": self._note(index, error)}

    def _make(self, shard: Mapping[str, Any]) -> dict[str, Any]:
        with self._loading:
            if self._worker is None:
                self._worker = made_worker(self._make_worker)
                self._room = threading.Semaphore(self._worker.overlap)
        with self._room:
            start = time.monotonic()
            output = self._worker(shard)
            with self._clock:  # the seconds that this shard alone cost
                end = time.monotonic()
                seconds, self._finished = end - max(start, self._finished), end
        return self._store.commit(shard["index"], output, max(0.0, seconds))

    def _mark(self, index: int) -> Location | None:
        """A file that stays if the process ends without a word; none is made after too many."""
        before = self._count(index, "died")
        if before >= MAX_DEATHS:
            return None
        mark = self._store.folder / "failures" / f"{index:05d}-died-{before + 1}-{os.getpid()}.json"
        write_atomic(mark, to_json({"shard": index, "host": socket.gethostname()}))
        return mark

    def _note(self, index: int, error: Exception) -> str:
        """Writes down what ended this process and ends it, so that Ray starts another; after some times, gives up.

        Returns:
          What to report of the shard.
        """
        text = f"{type(error).__name__}: {str(error).strip()[:300]}"
        tries = self._count(index, "error") + 1
        note = {
            "shard": index,
            "error": text,
            "traceback": "".join(traceback.format_exception(error)),
            "host": socket.gethostname(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_atomic(self._store.folder / "failures" / f"{index:05d}-error-{tries}-{os.getpid()}.json", to_json(note))
        print(f"shard {index}: {text}", file=sys.stderr, flush=True)
        if tries >= self._tries:
            return text
        os._exit(1)

    def _count(self, index: int, what: str) -> int:
        return sum(name.startswith(f"{index:05d}-{what}-") for name in list_files(self._store.folder / "failures"))


def _clear(folder: Location) -> None:
    for name in list_files(folder):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()


def _pickled(error: Exception) -> bytes:
    """The exception as bytes; one that cannot be pickled as its text."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(StoreError(f"{type(error).__name__}: {error}"))


def _demand(todo: Sequence[Any], resources: Mapping[str, Any], settings: Workers) -> str:
    most = f"to {settings.workers_max}" if settings.workers_max else "or more"
    chips = f", {settings.tpus} TPU chips" if settings.tpus else ""
    return (
        f"{len(todo):,} shards left, {settings.workers_min} {most} workers with {resources['num_cpus']:g} CPU"
        f"{chips} and {resources['num_gpus']:g} GPU each"
    )
