"""Files and folders that appear whole or not at all."""

import os
import signal
from pathlib import Path

import pytest

from hf_wakesleep.storage.atomic import atomic_folder, restore_folders, write_atomically


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(folder, content):
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text(content)


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["history.json"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, failing):
    write_folder(tmp_path / "task-01", "old")
    calls, replace = [], Path.replace

    def fail(path, target):
        calls.append(path)
        if len(calls) == failing:
            raise OSError("input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="What was complete before is intact"):
        write_folder(tmp_path / "task-01", "new")
    assert content_of(tmp_path) == {"task-01/file": "old"}


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_kill_while_a_folder_is_replaced_loses_neither_old_nor_new(tmp_path, killed_at):
    write_folder(tmp_path / "task-01", "old")
    child = os.fork()
    if not child:
        _kill_at(killed_at)
        write_folder(tmp_path / "task-01", "new")
        os._exit(0)
    os.waitpid(child, 0)
    restore_folders(tmp_path)
    kept = content_of(tmp_path)
    assert kept["task-01/file"] == ("new" if killed_at == 3 else "old")
    write_folder(tmp_path / "task-01", "newer")
    assert content_of(tmp_path)["task-01/file"] == "newer"
    assert restore_folders(tmp_path) == []


def _kill_at(call):
    """Kill this process at the beginning of a call of what moves folders: old aside, new in place, old removed."""
    import shutil

    calls, replace, remove = [], Path.replace, shutil.rmtree

    def moving(path, target):
        calls.append(path)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    def removing(path, *args, **kwargs):
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return remove(path, *args, **kwargs)

    Path.replace, shutil.rmtree = moving, removing
