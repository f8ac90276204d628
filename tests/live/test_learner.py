"""Learner: teaching, predicting, sleeping and correcting live, and stages that a run goes on from."""

import copy
import gc
import math
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import digits_of, equal_states
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    ContinualTrainingArguments,
    History,
    Learner,
    RawCodec,
    SemiParametricMemory,
    SleepConfig,
    TaskStream,
    WakeSleepForImageClassification,
)
from hf_wakesleep.learning.replay import Replay
from hf_wakesleep.live import learner as module
from hf_wakesleep.model.head_wakesleep import LinearDiscriminant

IMAGES = {str(digit): digits_of([digit], 40)["image"] for digit in range(4)}
TAUGHT = {name: images[:20] for name, images in IMAGES.items()}


@pytest.fixture
def learner(make_model):
    """A learner without classes around a small ViT from scratch."""
    return Learner(make_model(), History(), SemiParametricMemory(RawCodec()))


def share_right(learner, name):
    """Return the share of images of a class that were not taught and are answered right."""
    answers = learner.predict(IMAGES[name][20:], top_k=1)
    return Counter(answer["label"] for (answer,) in answers)[name] / len(answers)


def state_of(learner):
    """Return copies of all that a learner holds."""
    weights = {name: value.clone() for name, value in learner.model.state_dict().items()}
    history = copy.deepcopy(learner.history.to_dict())
    return weights, history, learner.memory.checksum(), learner.classes, learner.model.config.lda_weight


def assert_same(before, after):
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:] == after[1:]


def test_classes_are_taught_one_after_another_and_answered_at_once(learner):
    learner.teach({name: TAUGHT[name] for name in "01"})
    learner.teach(TAUGHT["2"], "2")
    learner.teach(IMAGES["3"][:5], label="3")
    assert learner.classes == ["0", "1", "2", "3"]
    assert np.mean([share_right(learner, name) for name in "0123"]) > 0.7
    assert len(learner.memory) == 65
    assert [record.new_classes for record in learner.history.records] == [["0", "1"], ["2"], ["3"]]
    assert learner.memory.tasks.max() == 2
    best = learner.predict(IMAGES["1"][30], top_k=9)
    assert len(best) == 4
    assert best[0]["score"] == max(answer["score"] for answer in best)
    assert sum(answer["score"] for answer in best) == pytest.approx(1, abs=1e-4)


def test_what_is_taught_are_the_statistics_of_all_images(learner):
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"]})
    learner.teach({"1": IMAGES["1"][20:30], "2": TAUGHT["2"]})
    expected = LinearDiscriminant(32, 3, None)
    given = {"0": TAUGHT["0"], "1": IMAGES["1"][:30], "2": TAUGHT["2"]}
    with torch.no_grad():
        for label, images in enumerate(given.values()):
            pixels = learner._reader.normalise(learner._reader.resize([image.convert("RGB") for image in images]))
            features = learner.model.extract_features(pixels.to(learner.model.device)).cpu()
            expected.update(features, torch.full((len(images),), label))
    torch.testing.assert_close(learner.model.head.lda.cpu().means, expected.means, rtol=1e-4, atol=1e-4)
    assert learner.model.head.lda.counts.tolist() == [20, 30, 20]


def test_images_of_every_kind_are_the_same_images(make_model, tmp_path):
    grey = [np.array(image) for image in TAUGHT["0"]]
    for number, pixels in enumerate(grey):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    kinds = [
        TAUGHT["0"],
        grey,
        [np.repeat(pixels[:, :, None], 3, axis=2) for pixels in grey],
        [torch.from_numpy(pixels)[None] for pixels in grey],
        torch.stack([torch.from_numpy(pixels)[None].expand(3, -1, -1) for pixels in grey]).unbind(),
        [tmp_path / f"{number}.png" for number in range(len(grey))],
        [str(tmp_path / f"{number}.png") for number in range(len(grey))],
    ]
    checksums = set()
    for images in kinds:
        learner = Learner(make_model(), History(), SemiParametricMemory(RawCodec()))
        learner.teach({"zero": images, "one": TAUGHT["1"]})
        checksums.add(learner.memory.checksum())
    learner = Learner(make_model(), History(), SemiParametricMemory(RawCodec()))
    dataset = digits_of([0, 1], 20).rename_columns({"image": "photo", "label": "digit"})
    learner.teach(dataset)
    assert learner.classes == ["0", "1"]
    learner.rename("0", "zero")
    learner.rename("1", "one")
    checksums.add(learner.memory.checksum())
    assert len(checksums) == 1


def test_a_sleep_teaches_the_network_all_classes(learner):
    learner.teach(TAUGHT)
    torch.nn.init.normal_(learner.model.head.classifier.weight, generator=torch.Generator().manual_seed(0))
    report = learner.sleep(SleepConfig(steps=80, batch_size=32, backbone_learning_rate_ratio=1.0, learning_rate=3e-3))
    assert report.held_out_accuracy > 0.8
    learner.model.config.lda_weight = 0.0
    assert np.mean([share_right(learner, name) for name in "0123"]) > 0.7
    learner.model.config.lda_weight = report.lda_weight
    record = learner.history.records[-1]
    assert record.sleep["steps"] == 80
    assert record.sleep_images == 80 * 32
    assert record.lda_weight == learner.model.config.lda_weight == report.lda_weight


def test_the_recipe_chooses_a_sleep_by_what_was_taught_since_the_last_one(learner, monkeypatch):
    chosen = []

    def consolidate(model, memory, config, **kwargs):
        chosen.append(config)
        return real(model, memory, SleepConfig(steps=2, lda_weight=0.5), **kwargs)

    real = module.consolidate
    monkeypatch.setattr(module, "consolidate", consolidate)
    learner.model.config.backbone_config._name_or_path = "somebody/vit"  # as if it were pretrained
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"]})
    learner.teach(TAUGHT["2"], "2")
    learner.sleep()
    learner.teach(TAUGHT["3"], "3")
    learner.sleep()
    assert [config.steps for config in chosen] == [round(12 * 60 / 32), round(12 * 80 / 3 / 32)]
    assert chosen[0].rng_key != chosen[1].rng_key
    assert 0.05 <= chosen[0].backbone_learning_rate_ratio <= 0.2


def test_a_stage_holds_everything_and_predicts_in_a_pipeline(learner, tmp_path):
    learner.teach(TAUGHT)
    learner.sleep(SleepConfig(steps=3, lda_weight=0.5))
    learner.save_pretrained(tmp_path / "stage")
    again = Learner.from_pretrained(tmp_path / "stage")
    assert_same(state_of(learner), state_of(again))
    image = IMAGES["2"][30]
    classify = pipeline("image-classification", model=str(tmp_path / "stage"))
    (first, *_), (best, *_) = classify(image), again.predict(image)
    assert first["label"] == best["label"]
    assert "task-01" in (tmp_path / "stage" / "README.md").read_text()


def test_a_run_goes_on_from_a_learner_and_a_learner_from_a_run(learner, make_trainer, tmp_path):
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"]})
    learner.save_pretrained(tmp_path / "stage")
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "stage")
    stream = ClassIncrementalStream(digits_of([2, 3], 30), num_tasks=1)
    trainer = make_trainer(model=model, stream=stream, output_dir="next")
    trainer.train()
    assert trainer.history.classes == ["0", "1", "2", "3"]
    later = Learner.from_pretrained(tmp_path / "next" / "task-02")
    later.teach(digits_of([7], 10)["image"], "seven")
    later.save_pretrained(tmp_path / "last")
    again = Learner.from_pretrained(tmp_path / "last")
    assert again.classes == ["0", "1", "2", "3", "seven"]
    assert [len(record.accuracy) for record in again.history.records] == [1, 2, 3]
    assert math.isnan(again.history.records[2].accuracy[2])


def test_a_class_is_renamed_everywhere(learner, tmp_path):
    learner.teach(TAUGHT)
    before = learner.predict(IMAGES["0"][30], top_k=4)
    learner.rename("0", "zero")
    learner.save_pretrained(tmp_path / "stage")
    again = Learner.from_pretrained(tmp_path / "stage")
    assert again.classes == ["zero", "1", "2", "3"]
    assert [answer["score"] for answer in again.predict(IMAGES["0"][30], top_k=4)] == pytest.approx(
        [answer["score"] for answer in before]
    )
    for path in ("config.json", "history.json"):
        assert '"0"' not in (tmp_path / "stage" / path).read_text().replace('"0":', "")  # but as an index
    assert again.memory.classes == again.classes


def test_what_is_forgotten_is_in_no_file_and_no_statistic(make_model, tmp_path):
    """All images are remembered without loss, so the statistics are those of a learner that never saw the class."""
    taught = {name: TAUGHT[name] for name in "013"}
    learner, other = (Learner(make_model(), History(), SemiParametricMemory(RawCodec())) for _ in range(2))
    learner.teach({**taught, "okapi": TAUGHT["2"]})
    learner.teach(IMAGES["0"][20:24], "0")
    other.teach(taught)
    other.teach(IMAGES["0"][20:24], "0")
    learner.forget("okapi")
    assert learner.classes == other.classes == ["0", "1", "3"]
    lda, expected = learner.model.head.lda.cpu(), other.model.head.lda.cpu()
    assert torch.equal(lda.counts, expected.counts)
    torch.testing.assert_close(lda.means, expected.means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lda.covariance(), expected.covariance(), rtol=1e-2, atol=1e-3)
    assert learner.memory.checksum() == other.memory.checksum()
    learner.save_pretrained(tmp_path / "stage")
    for path in (tmp_path / "stage").rglob("*"):
        assert path.is_dir() or b"okapi" not in path.read_bytes(), path
    again = Learner.from_pretrained(tmp_path / "stage")
    assert again.predict(IMAGES["3"][30], top_k=3)[0]["label"] in "013"
    again.teach(TAUGHT["2"], "okapi")
    assert again.classes == ["0", "1", "3", "okapi"]
    again.sleep(SleepConfig(steps=2, lda_weight=0.5))


def test_a_class_of_a_run_is_forgotten_and_the_others_answer_as_before(make_trainer, tmp_path):
    make_trainer(codec="webp").train()
    learner = Learner.from_pretrained(tmp_path / "out" / "task-02")
    kept = [name for name in learner.classes if name != "1"]
    before = learner.model.head.classifier.weight[[learner.classes.index(name) for name in kept]].clone()
    answers = [learner.predict(IMAGES[name][20:], top_k=1) for name in kept]
    learner.forget("1")
    assert learner.classes == kept
    assert torch.equal(learner.model.head.classifier.weight, before)
    after = [learner.predict(IMAGES[name][20:], top_k=1) for name in kept]
    pairs = [
        (old[0]["label"], new[0]["label"])
        for row in zip(answers, after, strict=True)
        for old, new in zip(*row, strict=True)
    ]
    assert np.mean([old == new for old, new in pairs if old != "1"]) > 0.95
    assert [name for record in learner.history.records for name in record.new_classes] == kept
    learner.save_pretrained(tmp_path / "stage")
    assert Learner.from_pretrained(tmp_path / "stage").classes == kept
    (tmp_path / "frozen").mkdir()
    make_trainer(output_dir="frozen/run", freeze_fraction=0.1).train()
    frozen = Learner.from_pretrained(tmp_path / "frozen" / "run" / "task-02")
    with pytest.raises(ValueError, match="weights are frozen"):
        frozen.forget("1")
    assert len(frozen.classes) == 4


def test_the_last_change_is_taken_back(learner):
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"]})
    changes = [
        lambda: learner.teach(TAUGHT["2"], "2"),
        lambda: learner.sleep(SleepConfig(steps=2, lda_weight=0.3)),
        lambda: learner.rename("1", "one"),
        lambda: learner.forget("1"),
    ]
    for change in changes:
        before = state_of(learner)
        change()
        assert not (equal_states(learner.model, learner._before[0]) and learner.classes == before[3])
        learner.undo()
        assert_same(before, state_of(learner))
        with pytest.raises(ValueError, match="no change to take back"):
            learner.undo()


def unlabelled():
    """Return images of which half have the label -1, as hidden test sets do."""
    dataset = digits_of([2], 4).remove_columns("label")
    return dataset.add_column("label", [0, -1, 0, -1], feature=ClassLabel(names=["two", "zebra"]))


def damaged():
    """Return images of which one is cut off."""
    cells = digits_of([2], 4).cast_column("image", ImageFeature(decode=False))["image"][:]
    cells[1] = {"bytes": cells[1]["bytes"][:40], "path": None}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["two"])})
    return Dataset.from_dict({"image": cells, "label": [0] * 4}, features=features)


class _Unreadable:
    """No image."""


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda it: it.teach([], "2"), ValueError, "Expected images of '2', got none"),
        (lambda it: it.teach({}), ValueError, "Expected images, got none"),
        (lambda it: it.teach(TAUGHT["2"]), TypeError, "name of a class, a text, got None"),
        (lambda it: it.teach(TAUGHT, "2"), ValueError, "`label` is '2'"),
        (
            lambda it: it.teach([*TAUGHT["2"], "missing.png"], "2"),
            ValueError,
            "image 20 of '2' cannot be read .*missing",
        ),
        (lambda it: it.teach([*TAUGHT["2"], _Unreadable()], "2"), TypeError, "image 20 of '2' .* got _Unreadable"),
        (lambda it: it.teach([np.zeros((8, 8))], "2"), ValueError, "image 0 of '2' .* got float64"),
        (lambda it: it.teach([np.zeros((0, 8), np.uint8)], "2"), ValueError, r"got uint8 of shape \(0, 8\)"),
        (lambda it: it.teach([torch.zeros(5, 8, 8, dtype=torch.uint8)], "2"), ValueError, "of shape"),
        (lambda it: it.teach(TAUGHT["2"], ""), ValueError, "names of classes"),
        (lambda it: it.teach(digits_of([2], 3).remove_columns("label")), ValueError, "label"),
        (lambda it: it.teach(unlabelled()), ValueError, "Every row needs a label, but 2 of 4"),
        (lambda it: it.teach(damaged()), ValueError, "image 1 of the dataset cannot be read"),
        (lambda it: it.teach(np.zeros((2, 8, 8, 3), np.uint8), "2"), ValueError, r"pass a batch as `list\(batch\)`"),
        (lambda it: it.teach([Image.new("L", (3000, 1))], "2"), ValueError, "too long a strip"),
        (lambda it: it.predict([TAUGHT["2"][0], "missing.png"]), ValueError, "image 1 cannot be read"),
        (lambda it: it.predict(TAUGHT["2"], top_k=0), ValueError, "`top_k` must be a positive"),
        (lambda it: it.rename("5", "6"), ValueError, "class that is known, got '5'"),
        (lambda it: it.rename("0", "1"), ValueError, "a class '1' already"),
        (lambda it: it.rename("0", 1), TypeError, "a text, got 1"),
        (lambda it: it.forget("5"), ValueError, "class that is known, got '5'"),
        (lambda it: it.sleep(SleepConfig(held_out_share=0.0)), ValueError, "`held_out_share` is 0"),
    ],
)
def test_a_wrong_call_is_one_clear_error_and_changes_nothing(learner, call, error, message):
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"]})
    before = state_of(learner)
    with pytest.raises(error, match=message):
        call(learner)
    assert_same(before, state_of(learner))


def test_a_learner_without_classes_or_memory_says_what_is_missing(make_model, make_trainer, tmp_path):
    empty = Learner(make_model(), History(), SemiParametricMemory(RawCodec()))
    for call, message in (
        (lambda: empty.predict(TAUGHT["0"]), "No class is known yet"),
        (lambda: empty.save_pretrained(tmp_path / "stage"), "nothing to save"),
        (empty.sleep, "there are none"),
        (empty.undo, "no change"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    empty.teach(TAUGHT["0"], "0")
    with pytest.raises(ValueError, match="'0' is the only one"):
        empty.forget("0")
    make_trainer(memory_budget="0", sleep_steps=0, output_dir="forgetful").train()
    forgetful = Learner.from_pretrained(tmp_path / "forgetful" / "task-02")
    assert len(forgetful.predict(TAUGHT["0"])) == 20
    for call in (lambda: forgetful.teach(TAUGHT["0"], "9"), forgetful.sleep):
        with pytest.raises(ValueError, match="memor"):
            call()


def test_arguments_and_trainers_made_in_between_do_no_harm(learner, tmp_path):
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"]})
    ContinualTrainingArguments(str(tmp_path), report_to="none")
    learner.teach(TAUGHT["2"], "2")
    ContinualTrainingArguments(str(tmp_path), report_to="none")
    learner.sleep(SleepConfig(steps=2, lda_weight=0.5))
    assert learner.classes == ["0", "1", "2"]


def test_nothing_of_what_was_forgotten_stays_in_the_process(learner):
    """Neither a loader of an accelerator nor a cache holds its images, once undo does not, either."""
    gone = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in range(4)]
    learner.teach({"0": TAUGHT["0"], "1": TAUGHT["1"], "gone": gone})
    watched = [weakref.ref(image) for image in gone]
    del gone
    learner.forget("gone")
    learner.teach(TAUGHT["2"], "2")
    gc.collect()
    assert [image() for image in watched] == [None] * 4
    assert AcceleratorState().distributed_type  # shared by all, and still there


def test_a_sleep_that_is_interrupted_changes_nothing(learner, monkeypatch):
    learner.teach(TAUGHT)
    before, take = state_of(learner), Replay._take_step

    def interrupt(replay):
        if replay.step == 2:
            raise KeyboardInterrupt
        take(replay)

    monkeypatch.setattr(Replay, "_take_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        learner.sleep(SleepConfig(steps=5, learning_rate=0.1, backbone_learning_rate_ratio=1.0, lda_weight=0.5))
    assert_same(before, state_of(learner))


def test_the_same_calls_give_the_same_bits_and_every_sleep_draws_anew(make_model, monkeypatch):
    keys, real = [], module.consolidate

    def consolidate(model, memory, config, **kwargs):
        keys.append(config.rng_key)
        return real(model, memory, replace(config, steps=3), **kwargs)

    monkeypatch.setattr(module, "consolidate", consolidate)
    states = []
    for noise in range(2):
        np.random.seed(noise)
        torch.manual_seed(noise)
        learner = Learner(make_model(), History(), SemiParametricMemory(RawCodec()))
        learner.teach(TAUGHT)
        for _ in range(3):
            learner.sleep()
        assert learner.history.num_steps == 9
        assert learner.history.records[-1].sleep_images == learner.history.records[-1].sleep["images"]
        states.append(learner.model)
    assert equal_states(*states)
    assert len(set(keys[:3])) == 3
    assert keys[:3] == keys[3:]


def test_what_was_measured_of_other_weights_is_unknown(make_trainer, tmp_path):
    make_trainer().train()
    changes = {
        "slept": lambda it: it.sleep(SleepConfig(steps=2, lda_weight=0.5)),
        "forgotten": lambda it: it.forget("1"),
        "taught": lambda it: it.teach(TAUGHT["0"], "new"),
    }
    for name, change in changes.items():
        learner = Learner.from_pretrained(tmp_path / "out" / "task-02")
        measured = learner.history.summary()["pooled_accuracy"]
        assert learner.history.confusion
        change(learner)
        learner.save_pretrained(tmp_path / name)
        history = History.load(tmp_path / name)
        assert np.isnan(history.records[-1].accuracy).all()
        assert history.confusion == []
        assert history.num_unknown_classes() == len(learner.classes)
        assert history.records[-1].num_codes == len(learner.memory)
        assert history.records[-1].memory_bytes == learner.memory.num_bytes.to_dict()
        card = ModelCard.load(tmp_path / name / "README.md")
        values = [result.metric_value for result in card.data.eval_results or []]
        assert not any(value == pytest.approx(measured, abs=1e-3) for value in values), name


def test_a_stage_with_frozen_weights_is_taught(make_trainer, tmp_path):
    make_trainer(freeze_fraction=0.1).train()
    learner = Learner.from_pretrained(tmp_path / "out" / "task-02")
    frozen = {name: mask.clone() for name, mask in learner.memory.synapses.masks(learner.model).items()}
    learner.teach(TAUGHT["0"], "new")
    learner.save_pretrained(tmp_path / "stage")
    again = Learner.from_pretrained(tmp_path / "stage")
    for name, mask in again.memory.synapses.masks(again.model).items():
        assert torch.equal(mask[: len(frozen[name])], frozen[name]), name
        assert not mask[len(frozen[name]) :].any()


def test_the_processor_of_a_stage_is_used_by_learners_and_runs(make_model, make_args, make_stream, tmp_path):
    own = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.2] * 3, image_std=[0.9] * 3)
    ContinualTrainer(make_model(), make_args(), make_stream(), processing_class=own).train()
    learner = Learner.from_pretrained(tmp_path / "out" / "task-02")
    classify = pipeline("image-classification", model=str(tmp_path / "out" / "task-02"))
    for image in IMAGES["3"][:8]:
        expected, answer = classify(image.convert("RGB"))[0], learner.predict(image, top_k=1)[0]
        assert (answer["label"], answer["score"]) == (expected["label"], pytest.approx(expected["score"], abs=1e-3))
    learner.save_pretrained(tmp_path / "stage")
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "stage").image_mean) == [0.2] * 3
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "stage")
    stream = ClassIncrementalStream(digits_of([7, 8], 10), num_tasks=1)
    trainer = ContinualTrainer(model, make_args("next"), stream)
    assert list(trainer.processing_class.image_mean) == [0.2] * 3


def test_names_of_tasks_are_free_and_do_not_tell_what_was_forgotten(make_trainer, tmp_path):
    names = ClassLabel(names=["0", "1", "zebra"])
    data = digits_of(range(3), 20).remove_columns("label")
    data = data.add_column("label", np.repeat(range(3), 20), feature=names)
    splits = DatasetDict({"task-03": data.select(range(40)), "zebra": data.select(range(40, 60))})
    make_trainer(stream=TaskStream.from_splits(splits)).train()
    learner = Learner.from_pretrained(tmp_path / "out" / "task-02")
    learner.teach(TAUGHT["3"], "3")
    learner.forget("zebra")
    learner.save_pretrained(tmp_path / "stage")
    again = Learner.from_pretrained(tmp_path / "stage")
    assert len({record.name for record in again.history.records}) == 3
    for path in (tmp_path / "stage").rglob("*"):
        assert path.is_dir() or b"zebra" not in path.read_bytes(), path


def test_a_budget_is_kept_and_one_too_small_for_a_class_more_is_refused(make_model):
    memory = SemiParametricMemory(RawCodec(), 20_000)
    learner = Learner(make_model(), History(), memory)
    learner.teach(TAUGHT)
    assert learner.memory.num_bytes.total <= 20_000
    assert set(Counter(learner.memory.labels.tolist())) == {0, 1, 2, 3}
    before = state_of(learner)
    with pytest.raises(ValueError, match="budget"):
        learner.teach({f"class {number}": TAUGHT["0"][:1] for number in range(100)})
    assert_same(before, state_of(learner))
