"""Stages and checkpoints in an output folder."""

import pytest
from test_history import make_history

from hf_wakesleep import RawCodec, SemiParametricMemory
from hf_wakesleep.images import make_image_processor
from hf_wakesleep.stage import Stage, find_resume_point, find_stages, load_memory, stage_name


def make_stage(make_model, memory=None) -> Stage:
    model = make_model()
    return Stage(model, make_image_processor(model.config), make_history(), memory)


def test_a_stage_appears_whole_or_not_at_all(make_model, tmp_path, monkeypatch):
    memory = SemiParametricMemory(RawCodec(), None, ["a"])
    stage = make_stage(make_model, memory)
    monkeypatch.setattr(type(memory), "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        stage.save(tmp_path / "task-01")
    assert find_stages(tmp_path) == []
    monkeypatch.undo()
    stage.save(tmp_path / "task-01")
    assert [path.name for path in tmp_path.iterdir()] == ["task-01"]
    assert {path.name for path in (tmp_path / "task-01").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "history.json",
        "memory",
    }


def test_a_stage_without_memory_has_no_memory_folder(make_model, tmp_path):
    make_stage(make_model).save(tmp_path / "task-01")
    assert load_memory(tmp_path / "task-01") is None


def test_stages_are_found_in_order_up_to_the_first_gap(tmp_path):
    for number in (0, 1, 9, 99, 100):
        folder = tmp_path / stage_name(number)
        folder.mkdir()
        (folder / "history.json").touch()
    (tmp_path / "task-03").mkdir()
    assert [stage.name for stage in find_stages(tmp_path)] == ["task-01", "task-02"]
    assert [stage.name for stage in find_stages(tmp_path, 1)] == ["task-01"]
    assert stage_name(99) == "task-100"


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, whole in ((5, True), (10, True), (15, False)):
        folder = tmp_path / "checkpoints" / "task-01" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "trainer_state.json").touch()
    assert find_resume_point(tmp_path, True) == (None, tmp_path / "checkpoints" / "task-01" / "checkpoint-10")
    with pytest.raises(ValueError, match="is neither"):
        find_resume_point(tmp_path, tmp_path / "checkpoints" / "task-01" / "checkpoint-15")
