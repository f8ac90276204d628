"""ContinualTrainer: the whole road on real digits, going on after a stop, and what it refuses."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import digits_of, equal_states, make_images
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow
from runs import StopAt, StopError, assert_same_end, stop_at
from transformers import pipeline

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    DomainIncrementalStream,
    LearnedCodec,
    SemiParametricMemory,
    SleepCallback,
    TaskStream,
    WakeSleepForImageClassification,
)
from hf_wakesleep.learning import sleep
from hf_wakesleep.stages.stage import find_stages


def test_two_tasks_from_end_to_end(make_trainer, make_args, tmp_path):
    """Wake, sleep and stages on real digits: it learns, forgets little, and every stage stands on its own."""
    trainer = make_trainer(num_train_epochs=2, sleep_steps=200, sleep_batch_size=32, memory_budget="60KB", codec="raw")
    output = trainer.train()
    history = trainer.history
    assert history.summary()["pooled_accuracy"] > 0.85
    assert history.summary()["forgetting"] < 0.15
    assert output.metrics == history.summary()
    assert output.global_step == 2 * 2 * 7
    assert [len(row) for row in history.accuracy_matrix] == [1, 2]

    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "history.json",
        "history.png",
        "task-01",
        "task-02",
    }
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.pt")) + list(out.rglob("*.pkl"))
    content = json.loads((out / "history.json").read_text())
    assert content["accuracy_matrix"] == history.accuracy_matrix
    assert content["classes"] == list(trainer.stream.classes)
    assert content["seed"] == trainer.args.seed
    assert all(0 < bytes_["total"] <= 60_000 for bytes_ in content["memory_bytes"])
    assert content["wake_images"] == [2 * 200, 2 * (200 + 200)]  # new images, and as many memories
    assert content["sleep_images"] == [200 * 32, 200 * 32]

    stages = find_stages(out)
    assert [stage.name for stage in stages] == ["task-01", "task-02"]
    last = WakeSleepForImageClassification.from_pretrained(stages[-1])
    assert equal_states(last, trainer.model)
    assert last.config.classes == list(trainer.stream.classes)
    assert WakeSleepForImageClassification.from_pretrained(stages[0]).config.classes == list(trainer.stream[0].classes)
    memory = SemiParametricMemory.from_pretrained(str(stages[-1]))
    assert len(memory) == content["num_codes"][-1] == len(trainer.memory)
    assert memory.num_bytes.to_dict() == content["memory_bytes"][-1]
    images = trainer.stream[0].eval_dataset
    answers = pipeline("image-classification", model=str(stages[-1]))(images["image"][:], top_k=1)
    names = images.features["label"].names
    hits = [one[0]["label"] == names[label] for one, label in zip(answers, images["label"], strict=True)]
    assert np.mean(hits) == pytest.approx(history.accuracy_matrix[-1][0])


def test_the_same_command_gives_the_same_numbers(make_trainer):
    trainers = [make_trainer(output_dir=str(run), augmentation="crop") for run in range(2)]
    for trainer in trainers:
        trainer.train()
    assert_same_end(*trainers)


@pytest.mark.parametrize("whole_stream", [True, False])
def test_a_stage_goes_on_exactly_as_the_uninterrupted_run(make_trainer, make_stream, tmp_path, whole_stream):
    whole = make_trainer(output_dir="whole", stream=make_stream(num_tasks=4), memory_budget="35KB")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "task-02", tmp_path / "elsewhere" / "stage")
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "elsewhere" / "stage")
    tasks = make_stream(num_tasks=4)
    stream = tasks if whole_stream else TaskStream(tasks[2:], tasks.protocol)
    resumed = make_trainer(output_dir="elsewhere", model=model, stream=stream, memory_budget="35KB")
    resumed.train()
    assert equal_states(whole.model, resumed.model)
    assert np.array_equal(whole.memory.labels, resumed.memory.labels)
    for one, two in zip(whole.history.accuracy_matrix, resumed.history.accuracy_matrix, strict=True):
        known = [value for value in two if not math.isnan(value)]
        assert known == one[len(one) - len(known) :]
    if whole_stream:
        assert_same_end(whole, resumed)
    else:
        assert math.isnan(resumed.history.accuracy_matrix[-1][0])
        assert math.isnan(resumed.history.accuracy_matrix[-1][1])
    assert [path.name for path in find_stages(tmp_path / "elsewhere")] == ["task-03", "task-04"]


@pytest.mark.parametrize(("task", "step"), [(0, 0), (0, 4), (1, 0), (1, 3)])
def test_a_run_that_was_stopped_ends_with_the_same_numbers(make_trainer, tmp_path, task, step):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "augmentation": "crop"}
    whole = make_trainer(output_dir="whole", **settings)
    whole.train()
    stopped = make_trainer(output_dir="stopped", **settings)
    stopped.add_callback(StopAt(stopped, task, step))
    with pytest.raises(StopError):
        stopped.train()
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
    assert not list(tmp_path.glob("*/checkpoints/task-*"))


def test_a_run_without_checkpoints_that_was_stopped_asleep_ends_with_the_same_numbers(make_trainer, monkeypatch):
    settings = {"num_train_epochs": 2, "save_strategy": "no"}
    whole = make_trainer(output_dir="whole", **settings)
    whole.train()
    stopped = make_trainer(output_dir="stopped", **settings)
    monkeypatch.setattr(sleep, "update_lda", stop_at(2, sleep.update_lda))
    with pytest.raises(StopError):
        stopped.train()
    monkeypatch.undo()
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_a_path_to_a_stage_or_a_checkpoint_goes_on_from_there(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    whole = make_trainer(output_dir="whole", **settings)
    whole.train()
    stopped = make_trainer(output_dir="stopped", **settings)
    stopped.add_callback(StopAt(stopped, 1, 3))
    with pytest.raises(StopError):
        stopped.train()
    shutil.copytree(tmp_path / "stopped", tmp_path / "copy")
    for folder, point in (("stopped", "checkpoints/task-02/checkpoint-2"), ("copy", "task-01")):
        resumed = make_trainer(output_dir=folder, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / folder / point))
        assert_same_end(whole, resumed)
    with pytest.raises(ValueError, match="is neither"):
        make_trainer(output_dir="new").train(resume_from_checkpoint=str(tmp_path))


def test_resuming_a_finished_or_an_empty_run_is_fine(make_trainer):
    first = make_trainer()
    first.train(resume_from_checkpoint=True)
    again = make_trainer()
    again.train(resume_from_checkpoint=True)
    assert_same_end(first, again)


def test_another_run_in_the_output_folder_is_refused(make_trainer, make_stream, tmp_path):
    make_trainer().train()
    before = (tmp_path / "out" / "history.json").read_text()
    with pytest.raises(ValueError, match="holds another run"):
        make_trainer().train()
    with pytest.raises(ValueError, match=r"seed is 42 there, 7 here"):
        make_trainer(seed=7).train(resume_from_checkpoint=True)
    other = make_stream(num_tasks=4)
    with pytest.raises(ValueError, match=r"Differences: stream.tasks has 2 entries there, 4 here"):
        make_trainer(stream=other).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"memory.codec is 'webp' there, 'raw' here"):
        make_trainer(codec="raw").train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"memory.quality is 50 there, 90 here"):
        make_trainer(codec_quality=90).train(resume_from_checkpoint=True)
    make_trainer(output_dir="second").train()
    with pytest.raises(ValueError, match="holds another run"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "second" / "task-01"))
    assert (tmp_path / "out" / "history.json").read_text() == before


def test_a_budget_too_small_is_refused_before_anything_is_trained(make_trainer, tmp_path):
    trainer = make_trainer(memory_budget="4KB", codec="raw")
    with pytest.raises(ValueError, match="`memory_budget` must hold at least one code per class"):
        trainer.train()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_unreadable_image_is_refused_before_anything_is_trained(make_trainer, make_stream, tmp_path):
    stream = make_stream()
    broken = stream[1].train_dataset.cast_column("image", Image(decode=False))
    cells = broken["image"][:]
    cells[5] = {"bytes": b"broken", "path": None}
    features = Features({"image": Image(), "label": stream[1].train_dataset.features["label"]})
    data = Dataset.from_dict({"image": cells, "label": broken["label"][:]}, features=features)
    task = type(stream[1])(stream[1].name, stream[1].classes, stream[1].new_classes, data, stream[1].eval_dataset)
    trainer = make_trainer(stream=TaskStream([stream[0], task], stream.protocol), measure="full")
    with pytest.raises(ValueError, match="image 5 of the training images of task-02 cannot be read"):
        trainer.train()
    assert not find_stages(tmp_path / "out")


def test_fine_tuning_keeps_no_memory_and_forgets(make_trainer, tmp_path):
    trainer = make_trainer(memory_budget="0", sleep_steps=0, lda_weight=0.0, num_train_epochs=15)
    trainer.train()
    assert trainer.memory is None
    assert trainer.history.accuracy_matrix[0][0] > 0.9
    assert trainer.history.accuracy_matrix[1][0] < 0.2
    assert not (tmp_path / "out" / "task-02" / "memory").exists()
    assert trainer.history.records[-1].sleep == {}


def test_replay_awake_mixes_memories_of_earlier_tasks_into_every_batch(make_trainer):
    trainer = make_trainer(codec="raw", wake_replay=True, sleep_steps=0, lda_weight=0.0, num_train_epochs=15)
    trainer.train()
    assert trainer.history.summary()["pooled_accuracy"] > 0.8


def test_an_epoch_awake_replays_each_memory_once_when_there_are_as_many(make_trainer):
    trainer = make_trainer(
        stream=ClassIncrementalStream(digits_of(range(4), 12), num_tasks=2), codec="raw", wake_replay=True,
        wake_plasticity="head", sleep_steps=0, num_train_epochs=1,
        per_device_train_batch_size=6, gradient_accumulation_steps=2,
    )  # fmt: skip
    replayed, read = [], trainer.memory.read
    trainer.memory.read = lambda indices: replayed.extend(indices.tolist()) or read(indices)
    trainer.train()
    assert sorted(replayed) == np.flatnonzero(trainer.memory.tasks == 0).tolist()


def test_the_seed_decides_on_order_augmentation_and_memories_awake(make_trainer):
    seen, data = [], digits_of(range(4), 12)
    for seed in (1, 1, 2):
        trainer = make_trainer(
            output_dir=str(len(seen)), stream=ClassIncrementalStream(data, num_tasks=2), seed=seed, codec="raw",
            wake_replay=True, sleep_steps=0, max_steps=1, augmentation="crop",
        )  # fmt: skip
        looks, step = [], trainer.training_step
        trainer.training_step = lambda model, inputs, *args, looks=looks, step=step: (
            looks.append(inputs["pixel_values"]) or step(model, inputs, *args)
        )
        trainer.model.register_forward_pre_hook(
            lambda model, args, kwargs, looks=looks: looks.append(kwargs) if model.training else None, with_kwargs=True
        )
        trainer.train()
        loaded, given = looks[-2:]
        crops = given["pixel_values"][: len(loaded)].sum(dim=(1, 2, 3)).sort().values
        seen.append({"order": loaded, "augmentation": crops, "memories": given["labels"][len(loaded) :]})
    first, again, other = seen
    assert all(torch.equal(first[what], again[what]) for what in first)
    assert [what for what in first if torch.equal(first[what], other[what])] == []


def test_joint_training_is_one_task(make_trainer, make_stream):
    trainer = make_trainer(stream=make_stream().joint(), memory_budget="0", sleep_steps=0, num_train_epochs=15)
    trainer.train()
    assert len(trainer.history) == 1
    assert trainer.history.summary()["pooled_accuracy"] > 0.85


def test_lda_alone_does_not_depend_on_the_order_of_the_tasks(make_trainer, make_stream, make_model):
    scores = []
    for seed in (1, 2):
        trainer = make_trainer(
            output_dir=str(seed),
            stream=make_stream(num_tasks=4, seed=seed),
            memory_budget="0",
            sleep_steps=0,
            num_train_epochs=0,
            lda_weight=1.0,
        )
        trainer.train()
        assert equal_states(trainer.model.backbone, make_model().backbone)
        scores.append(trainer.history.summary()["pooled_accuracy"])
    assert scores[0] == scores[1] > 0.7


def test_without_the_sleep_callback_the_network_stays_awake(make_trainer):
    trainer = make_trainer()
    trainer.remove_callback(SleepCallback)
    trainer.train()
    assert all(record.sleep == {} for record in trainer.history.records)


def test_a_head_that_alone_learns_leaves_the_backbone_and_lda_as_they_were(make_trainer, make_model):
    trainer = make_trainer(wake_plasticity="head", sleep_plasticity="head")
    trainer.train()
    assert equal_states(trainer.model.backbone, make_model().backbone)
    assert trainer.model.head.lda.counts.tolist() == [100] * 4


def test_domains_are_learned_one_after_another(make_trainer, digits):
    pieces = {}
    for split, part in digits.items():
        domain = np.arange(len(part)) % 2
        pieces[split] = part.add_column("domain", domain.tolist(), feature=ClassLabel(names=["even", "odd"]))
    trainer = make_trainer(stream=DomainIncrementalStream(DatasetDict(pieces)), num_train_epochs=5, sleep_steps=40)
    trainer.train()
    assert [record.new_classes for record in trainer.history.records] == [["0", "1", "2", "3"], []]
    assert trainer.model.config.num_labels == 4
    assert [len(row) for row in trainer.history.accuracy_matrix] == [1, 2]


def test_known_classes_in_a_new_stream_are_refused(make_trainer, make_stream, tmp_path):
    make_trainer().train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
    stream = ClassIncrementalStream(digits_of([0, 9], 10), num_tasks=2)
    with pytest.raises(ValueError, match="1 of its classes or domains are known already"):
        make_trainer(output_dir="other", model=model, stream=stream)


def test_a_model_with_classes_but_without_history_is_refused(make_trainer, make_model):
    model = make_model()
    model.grow(["a"])
    with pytest.raises(ValueError, match=r"there is no history\.json"):
        make_trainer(model=model)


def test_odd_images_and_labels_are_learned(make_trainer):
    """One-bit, grey, RGBA and palette images of many sizes, string labels, a class with one training image."""
    modes = ["1", "L", "RGBA", "P", "RGB"]
    generator = np.random.default_rng(0)
    rows = []
    for index in range(40):
        height, width = generator.integers(1, 40, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        rows.append(
            {"image": Pillow.fromarray(pixels).convert(modes[index % 5]), "label": "ape" if index % 2 else "ä 日"}
        )
    rows += [{"image": rows[0]["image"], "label": "once"}, {"image": rows[1]["image"], "label": "once"}]
    dataset = Dataset.from_list(rows, features=Features({"image": Image(), "label": Value("string")}))
    trainer = make_trainer(stream=ClassIncrementalStream(dataset, num_tasks=3, seed=0))
    trainer.train()
    assert sorted(trainer.model.config.classes) == ["ape", "once", "ä 日"]


def test_images_of_a_task_are_counted_not_padded(make_trainer):
    """Batches that do not divide the number of images write each image once."""
    data = make_images([0] * 7 + [1] * 6, ["a", "b"], seed=5)
    stream = ClassIncrementalStream(DatasetDict(train=data, test=make_images([0, 1], ["a", "b"], seed=6)), num_tasks=1)
    trainer = make_trainer(stream=stream, per_device_eval_batch_size=4, codec="raw")
    trainer.train()
    assert len(trainer.memory) == 13
    assert sorted(trainer.memory.labels.tolist()) == [0] * 7 + [1] * 6


def test_tasks_of_a_later_stream_are_kept_apart_from_earlier_ones_of_the_same_name(make_trainer, tmp_path):
    settings = {"num_train_epochs": 4, "sleep_steps": 60}
    make_trainer(**settings).train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
    stream = ClassIncrementalStream(digits_of([6, 7, 8, 9], 50), num_tasks=2, seed=0)
    trainer = make_trainer(output_dir="more", model=model, stream=stream, **settings)
    trainer.train()
    assert [record.name for record in trainer.history.records] == ["task-01", "task-02", "task-03", "task-04"]
    matrix = trainer.history.accuracy_matrix
    unknown = [[math.isnan(value) for value in row] for row in matrix[2:]]
    assert unknown == [[True, True, False], [True, True, False, False]]
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
    again = make_trainer(output_dir="more", model=model, stream=stream, **settings)
    again.train(resume_from_checkpoint=True)
    assert_same_end(trainer, again)


def test_a_stage_that_goes_on_with_a_new_stream_can_be_stopped_and_resumed(make_trainer, tmp_path):
    make_trainer().train()
    stream = ClassIncrementalStream(digits_of([6, 7, 8, 9], 30), num_tasks=2, seed=0)
    settings = {"stream": stream, "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}

    def build(folder):
        model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
        return make_trainer(output_dir=folder, model=model, **settings)

    whole = build("whole")
    whole.train()
    for task, step in ((2, 2), (3, 2)):
        stopped = build(f"stopped-{task}")
        stopped.add_callback(StopAt(stopped, task, step))
        with pytest.raises(StopError):
            stopped.train()
        resumed = build(f"stopped-{task}")
        resumed.train(resume_from_checkpoint=True)
        assert_same_end(whole, resumed)


def test_a_checkpoint_inside_the_first_task_belongs_to_its_run(make_trainer, make_stream):
    settings = {"save_strategy": "steps", "save_steps": 1}
    stopped = make_trainer(**settings)
    stopped.add_callback(StopAt(stopped, 0, 2))
    with pytest.raises(StopError):
        stopped.train()
    with pytest.raises(RuntimeError, match="stopped inside task 1"):
        stopped.train()
    with pytest.raises(ValueError, match="stopped inside a task"):
        make_trainer(**settings).train()
    with pytest.raises(ValueError, match=r"stream.seed is 3 there, 4 here"):
        make_trainer(stream=make_stream(seed=4), **settings).train(resume_from_checkpoint=True)
    make_trainer(**settings).train(resume_from_checkpoint=True)


def test_a_stage_keeps_its_codec_and_takes_a_new_budget(make_trainer, tmp_path):
    first = make_trainer(memory_budget="40KB", codec="raw")
    first.train()

    def build(**args):
        model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
        stream = ClassIncrementalStream(digits_of([8, 9], 30), num_tasks=1)
        return make_trainer(output_dir="next", model=model, stream=stream, **args)

    assert build().memory.budget == 40_000
    with pytest.raises(ValueError, match="written with `codec` 'raw', got 'webp'"):
        build(codec="webp")
    smaller = build(memory_budget="20KB")
    assert smaller.memory.num_bytes.total <= 20_000
    smaller.train()
    assert smaller.memory.num_bytes.total <= 20_000
    assert set(smaller.memory.labels) == set(range(6))


def test_the_learned_codec_of_a_new_memory_is_fitted_to_the_first_task_alone(make_trainer, make_model, tmp_path):
    first = make_trainer(codec="learned")
    assert first.memory.codec.digest() is None
    first.train()
    assert list(first.memory.codec.state_dict()) == ["tone.table"]
    assert first.memory.num_bytes.codec == 256
    shutil.rmtree(tmp_path / "out" / "task-02")
    again = make_trainer(codec="learned")
    again.train(resume_from_checkpoint=True)
    assert_same_end(first, again)
    plain = make_trainer(output_dir="plain", given_codec=LearnedCodec(30))
    plain.train()
    assert plain.memory.codec.state_dict() == {}
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "plain" / "task-02")
    stream = ClassIncrementalStream(digits_of([8, 9], 30), num_tasks=1)
    later = make_trainer(output_dir="later", model=model, stream=stream, codec="learned")
    later.train()
    assert later.memory.codec.state_dict() == {}


def test_a_stage_without_memory_is_not_slept_on(make_trainer, tmp_path):
    make_trainer(memory_budget="0", sleep_steps=0).train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
    stream = ClassIncrementalStream(digits_of([8, 9], 30), num_tasks=1)
    with pytest.raises(ValueError, match="keeps no memory"):
        make_trainer(output_dir="next", model=model, stream=stream)


def test_evaluation_takes_the_images_of_a_task_and_a_stage_knows_its_own(make_trainer, make_stream, tmp_path):
    trainer = make_trainer(num_train_epochs=2, sleep_steps=40)
    trainer.train()
    task = trainer.stream[0]
    expected = trainer.history.accuracy_matrix[-1][0]
    assert trainer.evaluate(task.eval_dataset)["eval_accuracy"] == expected
    assert trainer.predict(task.eval_dataset).metrics["test_accuracy"] == expected
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-02")
    metrics = make_trainer(output_dir="new", model=model).evaluate()
    assert metrics["eval_task-01_accuracy"] == expected
    with pytest.raises(ValueError, match=r"are of \['9'\]"):
        trainer.evaluate(ClassIncrementalStream(digits_of([9], 10), num_tasks=1)[0].eval_dataset)


def test_without_the_sleep_callback_lda_of_features_that_are_gone_is_not_trusted(make_trainer):
    trainer = make_trainer(memory_budget="0", sleep_steps=0)
    trainer.remove_callback(SleepCallback)
    trainer.train()
    assert trainer.model.config.lda_weight == 0


def test_label_smoothing_trains_the_classifier_not_the_mix(make_trainer, make_model):
    model = make_model(lda_weight=1.0)
    trainer = make_trainer(
        model=model,
        label_smoothing_factor=0.1,
        memory_budget="0",
        sleep_steps=0,
        num_train_epochs=10,
        lda_weight=0.0,
    )
    trainer.train()
    assert trainer.history.accuracy_matrix[0][0] > 0.9


def test_an_optimizer_of_ones_own_is_used(make_trainer):
    trainer = make_trainer(backbone_learning_rate_ratio=0.1)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 0.5})
    assert isinstance(trainer.create_optimizer(), torch.optim.SGD)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.5, 0.05}
    with pytest.raises(ValueError, match="`optimizers` cannot be passed"):
        ContinualTrainer(
            model=trainer.model, args=trainer.args, stream=trainer.stream, optimizers=(trainer.optimizer, None)
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 3, "dataloader_num_workers": 2},
        {"bf16": True, "use_cpu": True},
        {"eval_strategy": "epoch", "logging_steps": 1},
        {"gradient_checkpointing": True},
        {"classifier": "cosine"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_arguments_of_the_trainer_work_as_usual(make_trainer, make_model, settings):
    model = make_model(classifier=settings.pop("classifier", "linear"))
    trainer = make_trainer(model=model, num_train_epochs=2, **settings)
    trainer.train()
    assert len(trainer.history) == 2
    assert all(not value.isnan().any() for value in trainer.model.state_dict().values() if value.is_floating_point())


def test_a_processor_of_another_size_is_refused(make_trainer, make_model, make_args, make_stream):
    processor = make_trainer().processing_class.__class__(size={"height": 16, "width": 16})
    with pytest.raises(ValueError, match="square images of 8 pixels, .* got 16 x 16"):
        ContinualTrainer(model=make_model(), args=make_args(), stream=make_stream(), processing_class=processor)


def test_lda_answers_for_a_task_before_any_training_on_it(make_trainer):
    trainer = make_trainer(measure="full", num_train_epochs=0, sleep_steps=0, wake_plasticity="head")
    trainer.train()
    records = trainer.history.records
    assert [len(record.lda_accuracy) for record in records] == [1, 2]
    assert records[1].lda_accuracy[1] > 0.6
    assert "LDA alone" in trainer.history.table()
    trainer = make_trainer(output_dir="without")
    trainer.train()
    assert [record.lda_accuracy for record in trainer.history.records] == [[], []]


def test_naps_inside_wake_are_counted_change_the_end_and_survive_a_stop(make_trainer):
    settings = {"sleep_every_n_steps": 3, "nap_steps": 2, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(output_dir="whole", **settings)
    whole.train()
    steps = math.ceil(200 / 32)
    naps = (steps - 1) // 3
    assert whole.history.records[0].sleep_images == (5 + naps * 2) * 16
    without = make_trainer(output_dir="without")
    without.train()
    assert not equal_states(whole.model, without.model)
    stopped = make_trainer(output_dir="stopped", **settings)
    stopped.add_callback(StopAt(stopped, 1, 5))
    with pytest.raises(StopError):
        stopped.train()
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_naps_alone_bring_lda_to_the_backbone_that_they_trained(make_trainer):
    trainer = make_trainer(
        sleep_every_n_steps=2, nap_steps=5, sleep_steps=0, wake_plasticity="head",
        memory_budget="1MB", codec="raw",
    )  # fmt: skip
    trainer.train()
    model = trainer.model.cpu().eval()
    images, labels = trainer.memory.read(range(len(trainer.memory)))
    with torch.no_grad():
        features = model.extract_features(trainer.reader.normalise(images)).double()
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(4)])
    off = (model.head.lda.means.double() - means).norm(dim=1)
    assert (off < 0.1 * torch.pdist(means).min()).all()
