"""Going on after a stop, wherever it came: the end is that of a run which was never stopped, bit for bit."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from conftest import STOPPABLE, digits_of, equal_states
from runs import STEP_ASLEEP, StopAt, StopError, assert_same_end, send_at, stop_at
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    WebPCodec,
)
from hf_wakesleep.learning import lda, sleep, task_run
from hf_wakesleep.learning.wake import WakePass
from hf_wakesleep.stages import stage
from hf_wakesleep.stages.checkpoint import SLEEP_NAME, find_checkpoints
from hf_wakesleep.storage.lock import LOCK_NAME

pytestmark = pytest.mark.slow


def train_until(monkeypatch, trainer, where, name, replacement, error=StopError):
    """Train with something replaced until that raises, and return the error."""
    with monkeypatch.context() as patch:
        patch.setattr(where, name, replacement)
        with pytest.raises(error) as caught:
            trainer.train()
    return caught.value


POINTS = {
    "writing memory": (WakePass, "write", 2),
    "first step of a sleep": (*STEP_ASLEEP, 11),
    "between checkpoints of a sleep": (*STEP_ASLEEP, 18),
    "after a checkpoint of a sleep": (*STEP_ASLEEP, 15),
    "LDA recomputation": (sleep, "update_lda", 2),
    "saving a stage": (stage, "write_digests", 2),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_stopped_anywhere_ends_the_same(make_trainer, whole, tmp_path, monkeypatch, point):
    where, name, call = POINTS[point]
    stopped = make_trainer(output_dir="stopped", **STOPPABLE)
    monkeypatch.setattr(where, name, stop_at(call, getattr(where, name)))
    with pytest.raises(StopError):
        stopped.train()
    monkeypatch.undo()
    resumed = make_trainer(output_dir="stopped", **STOPPABLE)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {
        "history.json",
        "history.png",
        "task-01",
        "task-02",
    }


def test_sleep_goes_on_where_its_last_checkpoint_was_taken(make_trainer, monkeypatch):
    taken, take = [], getattr(*STEP_ASLEEP)
    monkeypatch.setattr(*STEP_ASLEEP, lambda *args: taken.append(1) or take(*args))
    train_until(monkeypatch, make_trainer(**STOPPABLE), sleep, "update_lda", stop_at(2, sleep.update_lda))
    assert len(taken) == 20
    taken.clear()
    encoded = []
    monkeypatch.setattr(WakePass, "write", lambda *args: encoded.append(args))
    make_trainer(**STOPPABLE).train(resume_from_checkpoint=True)
    assert taken == []  # the last step of the sleep was saved
    assert encoded == []  # and so was the memory


def test_a_wake_that_ends_inside_an_epoch_is_not_prolonged(make_trainer, monkeypatch):
    settings = {**STOPPABLE, "max_steps": 9}  # 7 steps are an epoch
    whole = make_trainer(output_dir="whole", **settings)
    whole.train()
    train_until(
        monkeypatch,
        make_trainer(output_dir="stopped", **settings),
        *STEP_ASLEEP,
        stop_at(16, getattr(*STEP_ASLEEP)),
    )
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"optim": "sgd"}, "optim is 'the default' there, 'sgd' here"),
        ({"wake_plasticity": "head"}, "wake_plasticity is 'full' there, 'head' here"),
        ({"backbone_learning_rate_ratio": 0.5}, "backbone_learning_rate_ratio is 1.0 there, 0.5 here"),
        ({"learning_rate": 1e-4}, "learning_rate is 0.003 there, 0.0001 here"),
        ({"sleep_steps": 20}, "sleep_steps is 10 there, 20 here"),
    ],
)
def test_a_checkpoint_inside_a_task_wants_the_arguments_it_was_made_with(
    make_trainer, tmp_path, monkeypatch, changes, difference
):
    train_until(monkeypatch, make_trainer(**STOPPABLE), *STEP_ASLEEP, stop_at(18, getattr(*STEP_ASLEEP)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"{difference}.*or remove .*checkpoints/task-02 to start that task again"):
        make_trainer(**{**STOPPABLE, **changes}).train(resume_from_checkpoint=True)
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "task-02")
    other = make_trainer(**{**STOPPABLE, **changes})
    other.train(resume_from_checkpoint=True)
    assert len(other.history) == 2


def test_a_checkpoint_wants_the_optimizer_it_was_made_with(make_model, make_args, make_stream, monkeypatch):
    def build(momentum):
        kind = (torch.optim.SGD, {"lr": 0.01, "momentum": momentum})
        return ContinualTrainer(make_model(), make_args(**STOPPABLE), make_stream(), optimizer_cls_and_kwargs=kind)

    train_until(monkeypatch, build(0.9), *STEP_ASLEEP, stop_at(18, getattr(*STEP_ASLEEP)))
    with pytest.raises(ValueError, match=r"optimizer is 'SGD, lr=0.01, momentum=0.9' there, '.*momentum=0.0' here"):
        build(0.0).train(resume_from_checkpoint=True)


def test_what_was_written_with_other_arguments_is_written_anew(make_trainer):
    """Killed before the first checkpoint, and gone on with another share to hold out."""
    settings = {**STOPPABLE, "save_steps": 100}
    stopped = make_trainer(**settings)
    stopped.add_callback(StopAt(stopped, task=0, step=2))
    with pytest.raises(StopError):
        stopped.train()
    resumed = make_trainer(**{**settings, "held_out_share": 0.3})
    resumed.train(resume_from_checkpoint=True)
    expected = make_trainer(output_dir="whole", **{**settings, "held_out_share": 0.3})
    expected.train()
    assert_same_end(expected, resumed)


class _StopWhenSaved(TrainerCallback):
    """Raises when the checkpoint of a step is written."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise StopError


def test_early_stopping_goes_on_where_it_was(make_trainer):
    settings = {**STOPPABLE, "save_steps": 2, "learning_rate": 1e-30, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"metric_for_best_model": "accuracy", "num_train_epochs": 3}
    expected = make_trainer(output_dir="whole", callbacks=[EarlyStoppingCallback(3)], **settings)
    expected.train()
    assert [record.wake_steps for record in expected.history.records] == [8, 8]
    for step in (4, 8):  # within its patience, and when it has stopped
        name = f"stopped-{step}"
        stopped = make_trainer(output_dir=name, callbacks=[EarlyStoppingCallback(3)], **settings)
        stopped.add_callback(_StopWhenSaved(step))
        with pytest.raises(StopError):
            stopped.train()
        resumed = make_trainer(output_dir=name, callbacks=[EarlyStoppingCallback(3)], **settings)
        resumed.train(resume_from_checkpoint=True)
        assert_same_end(expected, resumed)


def test_a_finished_run_that_is_gone_on_with_can_be_evaluated(make_trainer, whole, tmp_path):
    resumed = make_trainer(output_dir="whole2", **STOPPABLE)
    shutil.copytree(whole.args.output_dir, resumed.args.output_dir, dirs_exist_ok=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.evaluate()["eval_accuracy"] == whole.evaluate()["eval_accuracy"]


def test_a_wake_that_was_stopped_early_is_not_gone_on_with_from_its_sleep(make_trainer, monkeypatch):
    settings = {**STOPPABLE, "learning_rate": 1e-30, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"metric_for_best_model": "accuracy"}
    expected = make_trainer(output_dir="whole", callbacks=[EarlyStoppingCallback(1)], **settings)
    expected.train()
    assert [record.wake_steps for record in expected.history.records] == [4, 4]
    stopped = make_trainer(callbacks=[EarlyStoppingCallback(1)], **settings)
    train_until(monkeypatch, stopped, *STEP_ASLEEP, stop_at(18, getattr(*STEP_ASLEEP)))
    resumed = make_trainer(callbacks=[EarlyStoppingCallback(1)], **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(expected, resumed)


def test_checkpoints_count_on_from_wake_to_sleep_and_are_limited(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(sleep, "update_lda", stop_at(1, None))
    with pytest.raises(StopError):
        make_trainer(**STOPPABLE, save_total_limit=3).train()
    checkpoints = find_checkpoints(tmp_path / "out" / "checkpoints" / "task-01")
    assert [path.name for path in checkpoints] == ["checkpoint-18", "checkpoint-22", "checkpoint-24"]
    assert all((path / SLEEP_NAME).exists() for path in checkpoints)
    names = {path.name for path in checkpoints[0].parent.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".bin", ".pkl"))}
    assert torch.load(checkpoints[0] / SLEEP_NAME, weights_only=True)["step"] == 4


def test_going_on_from_a_path_forgets_what_came_after_it(make_trainer, whole, tmp_path, monkeypatch):
    train_until(
        monkeypatch,
        make_trainer(output_dir="stopped", **STOPPABLE),
        sleep,
        "update_lda",
        stop_at(2, sleep.update_lda),
    )
    folder = tmp_path / "stopped" / "checkpoints" / "task-02"
    for name in ("checkpoint-22", "checkpoint-14", "checkpoint-8"):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "stopped", copy)
        point = copy / "checkpoints" / "task-02" / name
        seen = []
        resumed = make_trainer(output_dir=name, **STOPPABLE)
        resumed.add_callback(_Look(seen, point.parent))
        resumed.train(resume_from_checkpoint=str(point))
        assert_same_end(whole, resumed)
        assert max(seen[0]) == int(name.removeprefix("checkpoint-"))
    assert folder.is_dir()


class _Look(TrainerCallback):
    def __init__(self, seen, folder):
        self.seen, self.folder = seen, folder

    def on_train_begin(self, args, state, control, **kwargs):
        steps = [int(path.name.removeprefix("checkpoint-")) for path in find_checkpoints(self.folder)]
        self.seen.append(steps)


class _SignalAt(TrainerCallback):
    """Sends a signal to this process when a step of wake begins."""

    def __init__(self, trainer, number, step):
        self.trainer, self.number, self.step = trainer, number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer.task_number == 1 and state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 13)])
def test_a_signal_awake_ends_with_a_checkpoint(make_trainer, tmp_path, whole, number, step, save_strategy):
    settings = {**STOPPABLE, "save_strategy": save_strategy}
    handler = signal.getsignal(number)
    stopped = make_trainer(output_dir="stopped", **settings)
    stopped.add_callback(_SignalAt(stopped, number, step))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        stopped.train()
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    else:
        assert caught.type is KeyboardInterrupt
    assert signal.getsignal(number) == handler
    last = find_checkpoints(tmp_path / "stopped" / "checkpoints" / "task-02")[-1]
    assert last.name == f"checkpoint-{step + 1}"
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_a_signal_asleep_ends_with_a_checkpoint(make_trainer, tmp_path, whole, monkeypatch, save_strategy):
    settings = {**STOPPABLE, "save_strategy": save_strategy}
    stopped = make_trainer(output_dir="stopped", **settings)
    sending = send_at(13, getattr(*STEP_ASLEEP))
    error = train_until(monkeypatch, stopped, *STEP_ASLEEP, sending, error=SystemExit)
    assert error.code == 143
    last = find_checkpoints(tmp_path / "stopped" / "checkpoints" / "task-02")[-1]
    assert last.name == "checkpoint-17"
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_a_signal_between_tasks_starts_no_further_one(make_trainer, tmp_path, whole, monkeypatch):
    sending = send_at(1, stage.write_digests)
    stopped = make_trainer(output_dir="stopped", **STOPPABLE)
    train_until(monkeypatch, stopped, stage, "write_digests", sending, error=SystemExit)
    assert sorted(path.name for path in (tmp_path / "stopped").glob("*task*")) == ["task-01"]
    resumed = make_trainer(output_dir="stopped", **STOPPABLE)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


@pytest.fixture
def make_small(make_trainer):
    """Return a function that builds trainers of two tasks of 4 steps awake and 4 asleep, with a checkpoint every 2."""
    data = digits_of(range(4), 16)
    settings = {"sleep_steps": 4, "save_strategy": "steps", "save_steps": 2}
    settings |= {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
    return lambda folder, **changes: make_trainer(
        output_dir=folder,
        stream=ClassIncrementalStream(data, num_tasks=2),
        **settings,
        **changes,
    )


_SMALL = []

SIGNALS = {  # what begins when the signal comes, for the how manieth time, and what is there when the run has stopped
    "writing memory": (WebPCodec, "encode", 6, {"task-01", "checkpoints/task-02/ingest"}),
    "LDA recomputation": (lda, "memory_features", 2, {"task-01"}),
    "last evaluation": (ContinualTrainer, "prediction_step", 2, {"task-01", "task-02"}),
}


@pytest.mark.parametrize("point", SIGNALS)
def test_a_signal_in_a_pass_ends_after_it_and_nothing_is_lost(make_small, tmp_path, monkeypatch, point):
    where, name, call, saved = SIGNALS[point]
    if not _SMALL:
        _SMALL.append(make_small("whole"))
        _SMALL[0].train()
    sending = send_at(call, getattr(where, name))
    error = train_until(monkeypatch, make_small("stopped"), where, name, sending, error=SystemExit)
    assert error.code == 143
    out = tmp_path / "stopped"
    assert {str(path.relative_to(out)) for path in [*out.glob("task-*"), *out.glob("checkpoints/*/*")]} == saved
    resumed = make_small("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(_SMALL[0], resumed)


def test_a_second_signal_in_a_pass_ends_at_once(make_small, tmp_path, monkeypatch):
    stopped = make_small("stopped", use_cpu=True)  # a GPU does not survive a fork
    with monkeypatch.context() as patch:
        patch.setattr(WebPCodec, "encode", send_at(2, WebPCodec.encode, times=2))
        process = multiprocessing.get_context("fork").Process(target=stopped.train)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGTERM
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {LOCK_NAME, "history.json"}


@pytest.mark.parametrize("point", ["ingest", "checkpoint-6"])
def test_seconds_go_on_from_those_before_a_stop(make_small, tmp_path, monkeypatch, point):
    train_until(monkeypatch, make_small("out"), sleep, "update_lda", stop_at(1, None))
    folder = tmp_path / "out" / "checkpoints" / "task-01"
    seconds = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/seconds.json")}
    assert 0 < seconds["ingest"]["awake"] < seconds["checkpoint-2"]["awake"] < seconds["checkpoint-4"]["awake"]
    assert seconds["checkpoint-6"]["awake"] == seconds["checkpoint-8"]["awake"]
    assert seconds["checkpoint-4"]["asleep"] == 0 < seconds["checkpoint-6"]["asleep"]
    (folder / point / "seconds.json").write_text(json.dumps({"awake": 5_000.0, "napping": 3_000.0, "asleep": 0.0}))
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"):
        if point == "ingest" or name > point:
            shutil.rmtree(folder / name)
    resumed = make_small("out")
    resumed.train(resume_from_checkpoint=True)
    first, second = resumed.history.records
    assert 5_000 < first.wake_seconds < 6_000
    assert 3_000 < first.sleep_seconds < 4_000
    assert second.wake_seconds < 2_000


def test_a_task_that_is_written_is_not_looked_at_again(make_small, monkeypatch):
    """Going on costs no pass over images: not over those of the task, nor over memories whose drift is looked at."""
    train_until(monkeypatch, make_small("out"), *STEP_ASLEEP, stop_at(2, getattr(*STEP_ASLEEP)))
    resumed = make_small("out")
    looked = []
    for where, name in ((WakePass, "write"), (task_run, "drift_features")):
        looking = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *args, f=looking, **kwargs: looked.append(f) or f(*args, **kwargs))
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.history) == 2
    assert [function.__name__ for function in looked] == ["write", "drift_features"]  # of the second task


def test_another_seed_gives_another_result(make_trainer, make_stream, whole):
    """What the seed reaches: order of classes, of images, augmentation, sleep; each alone changes the end."""
    other = make_trainer(output_dir="other", **STOPPABLE, seed=7)
    other.train()
    assert other.history.classes == whole.history.classes  # the stream has a seed of its own
    assert not equal_states(other.model, whole.model)
    stream = make_stream(seed=4)
    assert list(stream.classes) != whole.history.classes


def test_dropout_asleep_does_not_depend_on_what_was_random_before(make_trainer, monkeypatch):
    ends = []
    for waste in (0, 5):
        trainer = make_trainer(output_dir=str(waste), **STOPPABLE)
        trainer.callback_handler.callbacks.insert(0, _Waste(waste))  # before it sleeps
        trainer.train()
        ends.append(trainer)
    assert_same_end(*ends)


class _Waste(TrainerCallback):
    """Draws random numbers when wake ends."""

    def __init__(self, waste):
        self.waste = waste

    def on_train_end(self, args, state, control, **kwargs):
        torch.rand(self.waste)


def test_the_untrained_model_is_not_probed_again(make_trainer, monkeypatch):
    train_until(monkeypatch, make_trainer(**STOPPABLE, measure="full"), *STEP_ASLEEP, stop_at(1, None))
    probed = []
    probe = WakePass.probe
    monkeypatch.setattr(WakePass, "probe", lambda *args, **kwargs: probed.append(1) or probe(*args, **kwargs))
    make_trainer(**STOPPABLE, measure="full").train(resume_from_checkpoint=True)
    assert len(probed) == 1  # of the second task, before it is learned
