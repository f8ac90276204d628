"""folder_lock: one run at a time writes to a folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PATIENCE = 10  # seconds in which the workers of a killed run notice it, and end


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; the lock goes with the process, however that ends.

    Where the system or the file system has no locks, nothing is checked.

    Args:
        folder (`str` or `Path`): An existing folder. Nothing is written to it.

    Raises:
        ValueError: If another run holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _acquire(descriptor, folder)
        yield
    finally:
        with suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a worker that lives on has inherited it
        os.close(descriptor)


def _acquire(descriptor: int, folder: str | Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"Expected an `output_dir` that no other run writes to, but one that is still alive writes to "
                    f"{folder}. Wait until it ends, stop it, or choose another folder."
                ) from None
            time.sleep(0.2)
        except OSError:  # no locks here
            return
        else:
            return
