"""Every argument of `Trainer` and `TrainingArguments` works, or is refused by its name before anything is trained."""

import dataclasses
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from conftest import equal_states
from transformers import DefaultDataCollator, EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_wakesleep import ContinualTrainer
from hf_wakesleep.learning.argument_checks import FIXED
from hf_wakesleep.learning.distributed import check_sharding

# What each field of `TrainingArguments` is here. A field that is in none of these sets is new: try it, then add it.
WORKS = {  # tried below, or in another test
    "activation_checkpointing",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "eval_accumulation_steps",
    "eval_delay",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "eval_use_gather_object",
    "full_determinism",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "greater_is_better",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_token",
    "ignore_data_skip",
    "include_for_metrics",
    "label_smoothing_factor",
    "learning_rate",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "metric_for_best_model",
    "num_train_epochs",
    "optim",
    "optim_args",
    "output_dir",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
    "push_to_hub",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "seed",
    "skip_memory_metrics",
    "torch_compile",
    "torch_compile_backend",
    "torch_empty_cache_steps",
    "train_sampling_strategy",
    "use_cpu",
    "warmup_steps",
    "weight_decay",
}
CHECKED_WITH_THE_DEVICE = {"accelerator_config", "fp16"}
LEFT_TO_TRAINER = {  # what a machine, a launch or a logger makes of them; nothing here reads them
    "activation_checkpointing_kwargs",
    "average_tokens_across_devices",
    "dataloader_pin_memory",
    "ddp_backend",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
    "do_eval",
    "do_predict",
    "do_train",
    "fsdp",
    "fsdp_config",
    "gradient_checkpointing_kwargs",
    "hub_always_push",
    "length_column_name",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "project",
    "remove_unused_columns",
    "resume_from_checkpoint",
    "tf32",
    "torch_compile_mode",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "use_cache",
}
TRAINER_WORKS = {
    "args",
    "callbacks",
    "compute_metrics",
    "eval_dataset",
    "model",
    "optimizer_cls_and_kwargs",
    "processing_class",
}
TRAINER_REFUSED = {
    "compute_loss_func": lambda *_: 0.0,
    "data_collator": DefaultDataCollator(),
    "model_init": lambda: None,
    "optimizers": (torch.optim.SGD([torch.zeros(1)], lr=0.1), None),
    "preprocess_logits_for_metrics": lambda logits, labels: logits,
    "train_dataset": [1],
}
WRONG = {  # values other than those that must stay
    "train_sampling_strategy": "group_by_length",
    "label_names": ["label"],
    "hub_strategy": "end",
    "include_num_input_tokens_seen": "all",
    "optim_target_modules": ["qkv"],
    "neftune_noise_alpha": 5.0,
    "liger_kernel_config": {"rope": True},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "parallelism_config": {"tp_size": 2},
    "debug": "underflow_overflow",
    "ddp_broadcast_buffers": True,
}


def test_every_field_of_training_arguments_is_known_here():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    known = [WORKS, CHECKED_WITH_THE_DEVICE, LEFT_TO_TRAINER, set(FIXED)]
    assert fields == set().union(*known)
    tried = set(FIXED) - {"train_sampling_strategy"}
    assert not (WORKS | CHECKED_WITH_THE_DEVICE | LEFT_TO_TRAINER) & tried


def test_every_argument_of_trainer_is_known_here():
    parameters = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert parameters == TRAINER_WORKS | set(TRAINER_REFUSED)


@pytest.mark.parametrize("name", sorted(FIXED))
def test_what_cannot_be_followed_from_task_to_task_is_refused_by_name(make_args, tmp_path, name):
    value = WRONG.get(name, not FIXED[name][0][0])
    with pytest.raises(ValueError, match=rf"`{name}` must be .*, got "):
        make_args(**{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(TRAINER_REFUSED))
def test_what_trainer_takes_and_a_stream_brings_is_refused_by_name(make_model, make_args, make_stream, name):
    with pytest.raises(ValueError, match=rf"`{name}` cannot be passed"):
        ContinualTrainer(make_model(), make_args(), make_stream(), **{name: TRAINER_REFUSED[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"per_device_eval_batch_size": 0},
            "`per_device_eval_batch_size` must be an integer in",
        ),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps`"),
        ({"dataloader_num_workers": -1}, "`dataloader_num_workers`"),
        ({"seed": -1}, "`seed`"),
        ({"max_grad_norm": -1.0}, "`max_grad_norm` must be at least 0"),
        ({"warmup_steps": -3}, "`warmup_steps` must be at least 0"),
        ({"adam_beta1": 1.0}, r"`adam_beta1` must be in \[0, 1\)"),
        ({"adam_beta2": 2.0}, r"`adam_beta2` must be in \[0, 1\)"),
        ({"label_smoothing_factor": 1.0}, "`label_smoothing_factor`"),
        ({"logging_steps": -5}, "`logging_steps`"),
        ({"save_steps": math.nan}, "`save_steps`"),
        ({"learning_rate": math.inf}, "`learning_rate`"),
        ({"optim": "schedule_free_adamw"}, "`optim` 'schedule_free_adamw' cannot be used"),
        ({"optim": "lomo"}, "`optim` 'lomo' cannot be used"),
        ({"dataloader_persistent_workers": True}, "`dataloader_persistent_workers` is for worker processes"),
        ({"dataloader_multiprocessing_context": "spawn"}, "`dataloader_multiprocessing_context` is for worker"),
        ({"fp16": True, "use_cpu": True}, "`fp16` needs a GPU"),
        ({"accelerator_config": {"split_batches": True}}, "`accelerator_config` must leave `split_batches`"),
        ({"accelerator_config": {"even_batches": False}}, "`accelerator_config` must leave"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_argument(make_args, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_for_best_model": "f1"}, "`metric_for_best_model` must be 'accuracy' or 'loss'"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "`lr_scheduler_type` 'warmup_stable_decay' .*num_decay_steps"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, "`lr_scheduler_kwargs`.*nonsense"),
        ({"optim": "adamw_bnb_8bit"}, "`optim` 'adamw_bnb_8bit' "),
        ({"optim": "sgd", "optim_args": "nonsense=1"}, "`optim_args` 'nonsense=1' changes nothing of 'sgd'"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 500}, "`dataloader_drop_last` leaves no batch"),
    ],
)
def test_what_would_fail_after_a_task_was_written_is_refused_when_a_trainer_is_built(make_trainer, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**changes)


def test_other_kinds_and_folders_of_stages_are_refused_before_anything_is_written(
    make_model, make_args, make_stream, digits, tmp_path
):
    with pytest.raises(TypeError, match="Expected `stream` to be a TaskStream, got DatasetDict"):
        ContinualTrainer(make_model(), make_args(), digits)
    with pytest.raises(TypeError, match="Expected `args` to be ContinualTrainingArguments, got TrainingArguments"):
        ContinualTrainer(make_model(), TrainingArguments(str(tmp_path / "other")), make_stream())
    with pytest.raises(ValueError, match=r"Expected a model in float32.*got \['torch.bfloat16'\]"):
        ContinualTrainer(make_model().bfloat16(), make_args(), make_stream())
    make_model().save_pretrained(tmp_path / "stage")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="`output_dir` must be a folder of its own"):
        ContinualTrainer(make_model(), make_args("stage"), make_stream())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DistributedType.DEEPSPEED, {}, "without DeepSpeed"),
        (DistributedType.FSDP, {"sleep_average": 0.9}, "`sleep_average` needs a full model .* got 0.9"),
        (DistributedType.FSDP, {"sleep_every_n_steps": 3}, "`sleep_every_n_steps` needs a full model"),
    ],
)
def test_what_models_in_shards_cannot_do_is_refused_by_name(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        check_sharding(SimpleNamespace(distributed_type=kind), changes)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("no", None)])
def test_features_are_computed_in_the_precision_of_training(make_args, precision, dtype):
    args = make_args()
    args.mixed_precision = precision  # as a launch may set it
    with args.sleep_config().autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert dtype in (None, torch.get_autocast_dtype("cpu"))


def test_early_stopping_needs_a_metric_and_evaluations(make_trainer):
    for changes in ({}, {"metric_for_best_model": "accuracy"}, {"eval_strategy": "epoch"}):
        with pytest.raises(ValueError, match="EarlyStoppingCallback needs `metric_for_best_model`"):
            make_trainer(callbacks=[EarlyStoppingCallback(1)], **changes)


def test_a_search_of_hyper_parameters_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`hyperparameter_search` cannot be used"):
        make_trainer().hyperparameter_search(n_trials=1)


def test_early_stopping_ends_a_wake_by_the_accuracy_of_all_tasks(make_trainer):
    """Nothing is learned at such a rate, so that the second evaluation of every task stops its wake."""
    trainer = make_trainer(
        callbacks=[EarlyStoppingCallback(1)],
        num_train_epochs=6,
        learning_rate=1e-30,
        eval_strategy="epoch",
        metric_for_best_model="accuracy",
        save_strategy="best",
    )
    trainer.train()
    assert [record.wake_steps for record in trainer.history.records] == [14, 14]  # 2 epochs of 7 steps
    assert [record.wake_images for record in trainer.history.records] == [400, 800]
    assert len(trainer.history) == 2


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_the_loss_of_all_tasks_works(make_trainer, scheduler):
    trainer = make_trainer(lr_scheduler_type=scheduler, eval_strategy="steps", eval_steps=3)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 * (3 + 1)  # after steps 3, 6 and 7, and after sleep
    assert np.isfinite(losses).all()


def test_own_metrics_stand_beside_accuracy(make_trainer, digits):
    def top2(prediction):
        best = np.argsort(prediction.predictions, axis=1)[:, -2:]
        return {"top2": float((best == prediction.label_ids[:, None]).any(axis=1).mean())}

    trainer = make_trainer(compute_metrics=top2, eval_strategy="epoch", metric_for_best_model="top2")
    trainer.train()
    metrics = trainer.evaluate(digits["test"])
    assert metrics["eval_accuracy"] <= metrics["eval_top2"] <= 1
    assert trainer.state.best_metric is not None
    assert trainer.predict(digits["test"]).metrics["test_top2"] == metrics["eval_top2"]


HARMLESS = [  # settings that change nothing that is computed
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2},
    {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork", "dataloader_in_order": True},
    {"eval_accumulation_steps": 1, "eval_use_gather_object": True},
    {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 3, "eval_delay": 2, "greater_is_better": False},
    {"include_for_metrics": ["inputs", "loss"], "skip_memory_metrics": False, "torch_empty_cache_steps": 2},
    {"logging_strategy": "epoch", "logging_first_step": True, "logging_nan_inf_filter": False},
    {"save_strategy": "epoch", "save_total_limit": 1, "restore_callback_states_from_checkpoint": True},
    {"full_determinism": True, "ignore_data_skip": True, "run_name": "mine"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", HARMLESS, ids=lambda changes: next(iter(changes)))
def test_how_images_are_read_logged_saved_and_evaluated_changes_no_number(run_once, make_trainer, changes):
    reference = run_once({"augmentation": "none"})
    trainer = make_trainer(output_dir="other", compute_metrics=lambda _: {}, **changes)
    trainer.train()
    torch.use_deterministic_algorithms(False)
    assert equal_states(trainer.model, reference.model)
    assert trainer.history.accuracy_matrix == reference.history.accuracy_matrix


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"dataloader_drop_last": True, "per_device_eval_batch_size": 33},
        {"activation_checkpointing": True, "gradient_accumulation_steps": 2},
        {"train_sampling_strategy": "sequential", "data_seed": 3},
        {"optim": "adafactor", "lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"optim": "rmsprop", "optim_args": "momentum=0.9", "label_smoothing_factor": 0.1, "max_steps": 4},
        {"optim": "sgd", "weight_decay": 0.1, "max_grad_norm": 0.0, "warmup_steps": 0.5},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_ways_to_train_end_with_scores_of_all_images(make_trainer, changes):
    trainer = make_trainer(**changes)
    trainer.train()
    assert all(
        np.isfinite(value).all()
        for value in map(torch.Tensor.numpy, map(torch.Tensor.detach, trainer.model.parameters()))
    )
    for accuracy, task in zip(trainer.history.accuracy_matrix[-1], trainer.stream, strict=True):
        correct = accuracy * len(task.eval_dataset)
        assert correct == pytest.approx(round(correct), abs=1e-6)


class _Watch(TrainerCallback):
    """Keeps the weights of the classifier that it sees when training ends, and the model of every step."""

    def __init__(self):
        self.weights, self.tasks = [], []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(model.head.classifier.weight.detach().clone())

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.tasks.append(logs["task"])


def test_a_callback_sees_the_network_that_has_slept_when_training_ends(make_trainer):
    watch = _Watch()
    trainer = make_trainer(callbacks=[watch])
    trainer.train()
    assert torch.equal(watch.weights[-1], trainer.model.head.classifier.weight)
    first = type(trainer.model).from_pretrained(f"{trainer.args.output_dir}/task-01")
    assert torch.equal(watch.weights[0], first.head.classifier.weight)
    assert watch.tasks == sorted(watch.tasks)
    assert set(watch.tasks) == {1, 2}


def test_steps_grow_over_wake_sleep_and_tasks_and_losses_of_sleep_are_logged(make_trainer):
    trainer = make_trainer(logging_steps=2, sleep_steps=6, rem_share=0.5, num_train_epochs=1)
    trainer.train()
    log = trainer.state.log_history
    steps = [entry["step"] for entry in log]
    assert steps == sorted(steps)
    assert steps[-1] == 2 * (7 + 6) == trainer.history.num_steps
    asleep = [(entry["step"], entry["task"]) for entry in log if "sleep_learning_rate" in entry]
    assert asleep == [(9, 1), (11, 1), (13, 1), (22, 2), (24, 2), (26, 2)]
    assert {"nrem_loss", "rem_loss"} <= {name for entry in log for name in entry}
    awake = [(entry["step"], entry["task"]) for entry in log if "learning_rate" in entry]
    assert awake == [(2, 1), (4, 1), (6, 1), (15, 2), (17, 2), (19, 2)]


def test_all_that_is_logged_lies_in_the_output_folder(make_trainer, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(report_to=["tensorboard"], logging_steps=2, measure="full")
    trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    events = EventAccumulator(str(tmp_path / "out" / "runs"))
    events.Reload()
    for name in ("train/loss", "train/nrem_loss", "eval/accuracy", "train/lda_task-01_accuracy"):
        steps = [event.step for event in events.Scalars(name)]
        assert len(steps) >= 2
        assert steps == sorted(steps)


def test_naps_leave_nothing_behind(make_trainer):
    trainer = make_trainer(sleep_every_n_steps=2, nap_steps=1)
    trainer.train()
    assert len(trainer.accelerator._models) <= 1
    assert len(trainer.accelerator._optimizers) <= 1


def test_workers_end_with_the_task_that_they_read(make_trainer):
    import multiprocessing

    trainer = make_trainer(dataloader_num_workers=2, dataloader_persistent_workers=True)
    trainer.train()
    for task in trainer.stream:
        trainer.evaluate(task)
    assert len(multiprocessing.active_children()) <= 2  # those of the last task


def test_what_is_prepared_by_the_accelerator_can_be_let_go():
    """Names of accelerate that no public method reaches."""
    from accelerate import Accelerator

    accelerator = Accelerator()
    assert accelerator._models == accelerator._optimizers == []
