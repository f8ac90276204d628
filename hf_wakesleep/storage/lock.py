"""Lock on an output folder: only one run at a time writes to it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # what a file system without locks says
_PATIENCE = 10  # seconds to wait for a run that is ending


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this process while the block runs; the lock also ends when the process is killed.

    The empty file `.lock` is in the folder meanwhile. One that is left after a kill locks nothing. On a file system
    without locks the folder is not locked.

    Args:
        folder (`str` or `Path`): An existing folder.

    Raises:
        ValueError: If another run has locked it.
        OSError: If `.lock` cannot be written there.
    """
    file = Path(folder) / LOCK_NAME
    # Other users of the folder must be able to open the file. A soft lock would outlive a process that is killed.
    lock = FileLock(file, timeout=_PATIENCE, mode=0o666, poll_interval=0.2, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            "Expected an `output_dir` that no other run writes to, but one that is still alive writes to "
            f"{folder}. Wait until it ends, stop it, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        if lock.is_locked:  # not without locks, nor in a forked process that leaves the block
            with suppress(OSError):  # Windows removes it when it is released
                file.unlink()
            lock.release()
