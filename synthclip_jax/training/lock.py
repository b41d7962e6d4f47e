"""One training at a time in a workdir: a lock that names its holder, and is free again however the holder ends.

The operating system keeps it (flock), also between machines that share network storage: it goes with the process that
holds it, killed or not. The file names it, for the message to everybody else.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from synthclip_jax.devices.distributed import by_first, say
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.locks import try_lock
from synthclip_jax.files.storage import explained

NAME = ".lock"
_SHAPE = {"host": str, "pid": int, "started": str}
_TRIES, _PAUSE = 50, 0.1  # seconds between two looks at the holder's name

_held: set[int] = set()  # file descriptors: a process forked from this one must not go on holding the lock


class WorkdirBusy(UserError, RuntimeError):
    """Another process trains in this workdir; the text says which."""


def only_trainer(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Holds the lock of a workdir's `train` folder; see `only_one`."""
    return only_one(folder, f"{folder.parent}: ", "trains in this workdir")


@contextlib.contextmanager
def only_one(folder: pathlib.Path, where: str, does: str) -> Iterator[None]:
    """Holds a folder's lock. All processes of a program enter; the first one holds it.

    Args:
      where, does: what an error says before and after the holder's name.

    Raises:
      WorkdirBusy: another program holds it.
      StoreError: the folder cannot be written.
    """
    handles: list[int] = []
    try:
        by_first(lambda: handles.append(_take(folder, where, does)))
        yield
    finally:
        for handle in handles:
            _held.discard(handle)
            os.close(handle)  # and nobody holds it any more


def _take(folder: pathlib.Path, where: str, does: str) -> int:
    lock = folder / NAME
    with explained(lock):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with explained(lock):
            ours = try_lock(handle)
        if ours is False:
            raise WorkdirBusy(f"{where}{_holder(handle)} {does}. Wait until it ends, stop it, or use another --workdir")
    except BaseException:
        os.close(handle)
        raise
    _held.add(handle)
    if ours is None:
        say(f"{folder}: this file system has no locks. See to it that nobody else {does}")
        return handle
    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}) + "\n"
    with contextlib.suppress(OSError):  # a full disk: it is held all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    return handle


def _holder(handle: int) -> str:
    """The holder of the lock. A new one is given some time to write its name down."""
    for _ in range(_TRIES):
        with contextlib.suppress(OSError, state_files.StateError):
            found = state_files.parse(os.pread(handle, 4096, 0), NAME, "", _SHAPE)
            if found["host"] != socket.gethostname() or _runs(found["pid"]):  # else it is the name of the one before
                return f"process {found['pid']} on {found['host']}, started {found['started']},"
        time.sleep(_PAUSE)
    return "another process"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process, or no number of one: taken as it stands
        pass
    return True


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _let_go_in_child() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
