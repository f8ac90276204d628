"""Stages and checkpoints in an output folder."""

import pytest
from histories import make_history

from hf_wakesleep import RawCodec, SemiParametricMemory
from hf_wakesleep.data.images import make_image_processor
from hf_wakesleep.stages.stage import Stage, find_stages, load_memory, stage_name, stage_number


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


def test_stages_are_found_in_the_order_of_their_tasks(tmp_path):
    for name in ("task-04", "task-100", "task-05", "task-x", ".task-07.tmp", "task-06.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.json").touch()
    (tmp_path / "task-06").mkdir()  # empty, so no stage
    assert [stage.name for stage in find_stages(tmp_path)] == ["task-04", "task-05", "task-100"]
    assert [stage_number(tmp_path / stage_name(number)) for number in (0, 8, 99)] == [0, 8, 99]
