"""Locks of open files (flock): the operating system frees them however their holder ends, also on network storage."""

import errno
import fcntl

# What file systems without locks say.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def try_lock(handle: int) -> bool | None:
    """Takes the lock of an open file without waiting.

    Returns:
      Whether it was free; None: the file system has no locks.

    Raises:
      OSError: the storage fails otherwise.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        if error.errno in _HELD:
            return False
        raise
    return True
