"""Checkpoints: found, written whole, dropped; what a kill leaves behind is recognised and removed."""

import pytest

from hf_wakesleep.stages.checkpoint import (
    LAST_WRITTEN,
    checkpoints_of,
    clean,
    drop_checkpoints,
    drop_later_checkpoints,
    drop_old_checkpoints,
    find_checkpoints,
    find_resume_point,
    is_due,
    load_sleep,
)


def make_checkpoint(output_dir, task, step, whole=True):
    folder = checkpoints_of(output_dir, task) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    if whole:
        (folder / LAST_WRITTEN).touch()
    return folder


def make_stage(output_dir, name):
    (output_dir / name).mkdir()
    (output_dir / name / "history.json").touch()


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, whole in ((5, True), (10, True), (15, False)):
        make_checkpoint(tmp_path, 0, step, whole)
    folder = checkpoints_of(tmp_path, 0)
    assert find_resume_point(tmp_path, True, 0) == (None, folder / "checkpoint-10")
    with pytest.raises(ValueError, match="is neither"):
        find_resume_point(tmp_path, folder / "checkpoint-15", 0)


def test_a_checkpoint_without_the_stage_before_it_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, 2, 5)
    with pytest.raises(ValueError, match="Expected the stage task-02"):
        find_resume_point(tmp_path, folder, 0)
    assert find_resume_point(tmp_path, folder, 2) == (None, folder)
    assert find_resume_point(tmp_path, True, 2) == (None, folder)


def test_what_a_kill_left_half_written_is_named_and_removed(tmp_path, caplog):
    kept, broken = make_checkpoint(tmp_path, 1, 5), make_checkpoint(tmp_path, 1, 9, whole=False)
    make_checkpoint(tmp_path, 0, 3)
    make_stage(tmp_path, "task-01")
    temporary = [tmp_path / ".task-02.tmp", kept.parent / ".saving.tmp", kept.parent.parent / ".task-01.removed.tmp"]
    for folder in temporary:
        (folder / "inside").mkdir(parents=True)
    (tmp_path / ".history.json.tmp").touch()
    found = clean(tmp_path)
    assert "task-02/checkpoint-9" in caplog.text
    assert sorted(found) == sorted([*temporary, broken, tmp_path / ".history.json.tmp"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "task-01"]
    assert list(tmp_path.glob("checkpoints/*")) == [kept.parent]
    assert list(kept.parent.iterdir()) == [kept]
    assert clean(tmp_path) == []


def test_a_folder_that_is_not_there_or_empty_needs_no_cleaning(tmp_path):
    assert clean(tmp_path / "new") == []
    assert clean(tmp_path) == []


def test_the_oldest_checkpoints_are_dropped_beyond_a_limit(tmp_path):
    for step in (10, 2, 30):
        folder = make_checkpoint(tmp_path, 0, step).parent
    drop_old_checkpoints(folder, None)
    assert [path.name for path in find_checkpoints(folder)] == ["checkpoint-2", "checkpoint-10", "checkpoint-30"]
    drop_old_checkpoints(folder, 2)
    assert [path.name for path in find_checkpoints(folder)] == ["checkpoint-10", "checkpoint-30"]
    drop_later_checkpoints(folder, folder / "checkpoint-10")
    assert [path.name for path in folder.iterdir()] == ["checkpoint-10"]
    drop_checkpoints(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_taken_awake_holds_no_sleep(tmp_path):
    assert load_sleep(None) is None
    assert load_sleep(make_checkpoint(tmp_path, 0, 5)) is None


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [("steps", 4, [4, 8, 10]), ("steps", 0.5, [5, 10]), ("epoch", 4, []), ("no", 4, []), ("steps", 50, [10])],
)
def test_checkpoints_are_due_at_every_interval_and_at_the_end_of_sleep(strategy, every, expected):
    assert [step for step in range(1, 11) if is_due(strategy, every, step, 10)] == expected
