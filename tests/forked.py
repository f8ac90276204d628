"""Processes forked from one that has imported the library already, which takes most of the seconds of a short run."""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from paths import EXAMPLES

_PRELOADED = [
    "hf_wakesleep.learning.trainer",
    "hf_wakesleep.codecs.learned.codec",
    "accelerate.utils.fsdp_utils",
    "sklearn.datasets",
]


def forkserver() -> multiprocessing.context.ForkServerContext:
    """Return the context whose processes are forked so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def send_output_to(path: Path, *streams: int) -> None:
    """Let what this process prints go to a file: 1 for its output, 2 for its errors."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in streams:
        os.dup2(file, stream)


def run_script(script: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a program as `python script args` would, and return its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        process = forkserver().Process(target=_run, args=(script, args, cwd, Path(folder)))
        process.start()
        process.join()
        printed = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([script, *args], process.exitcode, *printed)


def run_example(name: str, *args: str, cwd: Path, succeeds: bool = True) -> subprocess.CompletedProcess:
    """Run one of the examples, which must end well or, where it is to fail, must not."""
    done = run_script(EXAMPLES / name, *args, cwd=cwd)
    assert (done.returncode == 0) == succeeds, done.stderr[-3000:]
    return done


def _run(script: Path, args: tuple[str, ...], cwd: Path, folder: Path) -> None:
    gc.freeze()
    send_output_to(folder / "stdout", 1)
    send_output_to(folder / "stderr", 2)
    os.chdir(cwd)
    sys.argv, sys.path[0] = [str(script), *args], str(script.parent)
    runpy.run_path(str(script), run_name="__main__")
