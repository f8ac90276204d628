"""A folder is held by one run at a time, and by none that was killed."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from hf_wakesleep.stages.outbox import Outbox, push_pending
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
        assert [path.name for path in (tmp_path / "out").iterdir()] == [lock.LOCK_NAME]
    trainer.train()
    assert (tmp_path / "out" / "task-02").is_dir()
    assert not (tmp_path / "out" / lock.LOCK_NAME).exists()


def test_stages_are_not_sent_beside_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    Outbox("me/digits").save(tmp_path)
    with folder_lock(tmp_path), pytest.raises(ValueError, match="no other run writes to"):
        push_pending(tmp_path)
    assert push_pending(tmp_path) == []


@pytest.mark.slow
def test_the_lock_goes_with_a_process_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="no other run writes to"), folder_lock(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    monkeypatch.undo()  # its worker may hold on for a while
    assert (tmp_path / lock.LOCK_NAME).exists()
    with folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_nothing_is_checked_where_the_file_system_has_no_locks(tmp_path, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with pytest.raises(KeyError) as caught, folder_lock(tmp_path), folder_lock(tmp_path):
            raise KeyError
        assert caught.value.__context__ is None


def test_a_forked_process_that_leaves_the_block_does_not_end_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.3)
    with ExitStack() as stack:
        stack.enter_context(folder_lock(tmp_path))
        child = os.fork()
        if not child:
            try:
                stack.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ValueError, match="no other run writes to"), folder_lock(tmp_path):
            pass


@pytest.mark.slow
def test_a_lock_ends_with_its_block_though_a_worker_lives_on(tmp_path):
    command = [sys.executable, "-c", OUTLIVED, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "held again\n"
