"""folder_lock: one run at a time writes to a folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"
_PATIENCE = 10  # seconds in which a run that was killed ends


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; the lock goes with the process, however that ends.

    Where the file system has no locks, nothing is checked. An empty file `.lock` stands in the folder meanwhile.
    One that is left over, as after a kill, holds nothing.

    Args:
        folder (`str` or `Path`): An existing folder.

    Raises:
        ValueError: If another run holds it.
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
    except OSError:  # no locks here
        yield
        return
    try:
        yield
    finally:
        if lock.is_locked:  # not in a forked process that leaves the block
            with suppress(OSError):  # Windows removes it when it is released
                file.unlink()
            lock.release()
