"""A folder is held by one run at a time, and by none that was killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hf_wakesleep.stages.hub import Outbox, push_pending
from hf_wakesleep.storage import lock
from hf_wakesleep.storage.lock import folder_lock

HOLDER = """
import os, sys, time
from hf_wakesleep.storage.lock import folder_lock
with folder_lock(sys.argv[1]):
    if os.fork():
        print("held", flush=True)
        time.sleep(60)
    time.sleep(1)  # a worker, which lives on for a while
    os._exit(0)
"""

OUTLIVED = """
import os, signal, sys, time
from hf_wakesleep.storage import lock
lock._PATIENCE = 0.3
with lock.folder_lock(sys.argv[1]):
    worker = os.fork()
    if not worker:
        time.sleep(60)
try:
    with lock.folder_lock(sys.argv[1]):
        print("held again")
finally:
    os.kill(worker, signal.SIGKILL)
"""


def test_a_second_run_is_refused_before_it_writes_anything(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    trainer = make_trainer()
    with folder_lock(tmp_path / "out"):
        with pytest.raises(ValueError, match=r"no other run writes to, but one that is still alive .*choose another"):
            trainer.train()
        assert not list((tmp_path / "out").iterdir())
    trainer.train()
    assert (tmp_path / "out" / "task-02").is_dir()


def test_stages_are_not_sent_beside_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    Outbox("me/digits").save(tmp_path)
    with folder_lock(tmp_path), pytest.raises(ValueError, match="no other run writes to"):
        push_pending(tmp_path)
    assert push_pending(tmp_path) == []


@pytest.mark.slow
def test_the_lock_goes_with_a_process_that_is_killed_and_its_workers(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    with folder_lock(tmp_path):
        assert 0.1 < time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_lock_ends_with_its_block_though_a_worker_lives_on(tmp_path):
    command = [sys.executable, "-c", OUTLIVED, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "held again\n"
