"""Errors that a user can act on, and the one wrapper that every command runs in.

A `UserError` is one line on stderr: what, where, the remedy. So are what the operating system refuses (a full disk, a
folder that cannot be written), a package that is not installed, an object store that does not answer, and Ctrl-C.
Anything else is a fault of ours and stays a traceback.
"""

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from synthclip_jax.console import GENERATION, as_called

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended, as shells have it

_REMEDIES = {
    errno.ENOSPC: "no space is left on the device. Free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up. Free some space and run the same command again",
    errno.EROFS: "the file system is read-only. Name a place that can be written",
    errno.EACCES: "permission denied. Check the permissions of the file and its folder",
    errno.EPERM: "the operating system does not permit it. Check the permissions of the file and its folder",
    errno.ENOENT: "no such file or folder. Check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Check the path",
    errno.EISDIR: "a folder, where a file is needed. Check the path",
    errno.EEXIST: "it exists already. Name another place, or remove it",
    errno.ENAMETOOLONG: "the name is too long for the file system. Name a shorter one",
    errno.ELOOP: "a link that leads to itself. Remove it",
    errno.EMFILE: "too many open files. Raise the limit (ulimit -n) and run the same command again",
    errno.ENFILE: "too many open files on this machine. Close some programs and run the same command again",
    errno.EFBIG: "the file is larger than this process may write (ulimit -f) or the file system holds. Raise the limit",
    errno.EIO: "the device reports an input or output error. Check the disk, or mount it again",
    errno.ESTALE: "the file system does not answer. Mount it again and run the same command again",
    errno.ENOTCONN: "the file system does not answer. Mount it again and run the same command again",
    errno.EADDRINUSE: "the port is in use. Name another one",
    errno.ENOMEM: "out of memory. Close other programs, or use a larger machine",
}


class UserError(Exception):
    """An error that a user can act on: its text is one line that says what is wrong, where, and the remedy."""


class EvaluationError(UserError, RuntimeError):
    """Evaluation cannot give a number; the text says why."""


def explain(error: BaseException) -> str:
    """The line for an error that a user can act on; empty for any other one."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        if error.filename is None:  # some libraries name the file in their text alone
            detail = " ".join(str(error.strerror or error).split())
            return f"{_REMEDIES[error.errno]} ({detail})"
        return f"{error.filename}: {_REMEDIES[error.errno]}"
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in _OURS:
        return f"the package {error.name.partition('.')[0]!r} is not installed. Install it: the README says which extra"
    if isinstance(error, MemoryError):
        return "out of memory. Close other programs, use a larger machine, or ask for less at a time"
    if is_unreachable(error):
        return f"the object store cannot be reached. Run the same command again later ({error})"
    return ""


_OURS = (GENERATION, "synthclip_jax")
# Whose errors mean that an object store could not be reached, and not that the program is wrong.
_CLIENTS = ("botocore", "aiobotocore", "boto3", "s3fs", "aiohttp", "gcsfs", "google", "fsspec", "azure", "urllib3")


def is_unreachable(error: BaseException) -> bool:
    """Whether an error that is no OSError comes from the client of an object store."""
    return type(error).__module__.partition(".")[0] in _CLIENTS


class Closing:
    """Closes things at the end, all of them, and lets the first error out: that of the body, else the first in closing.

    with Closing() as closing:
        closing.later(file.close)
    """

    def __init__(self) -> None:
        self._closers: list[Callable[[], object]] = []

    def later(self, close: Callable[[], object]) -> None:
        """Calls this at the end; what was named last is closed first."""
        self._closers.append(close)

    def __enter__(self) -> "Closing":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        first = error
        for close in reversed(self._closers):
            try:
                close()
            except Exception as problem:  # what comes after the first error is mostly of its making
                first = first or problem
        if error is None and first is not None:
            raise first


def command(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates the `main` of a command: an error that a user can act on ends it with one line, `NAME: TEXT`.

    The exit status is then 1, or 130 after Ctrl-C.
    """

    def decorate(main: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return main(*args, **kwargs)
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr, flush=True)
                raise SystemExit(INTERRUPTED) from None
            except BrokenPipeError:  # what reads our output has ended (`| head`)
                sys.stdout = None  # type: ignore[assignment]  # else Python complains once more at exit
                raise SystemExit(1) from None
            except Exception as error:
                if line := explain(error):
                    raise SystemExit(f"{name}: {as_called(line)}") from error
                raise

        return run

    return decorate
