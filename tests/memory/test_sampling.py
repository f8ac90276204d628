"""Shares of the memories of each class, however many classes there are and however few memories each has."""

import numpy as np
import pytest

from hf_wakesleep.memory.sampling import held_out_mask, stratified_mask, subsample


def mask_of(labels, share=0.1, tasks=None):
    labels = np.asarray(labels, dtype=np.int64)
    return held_out_mask(labels, np.zeros(len(labels), dtype=np.int32) if tasks is None else tasks, share)


@pytest.mark.parametrize("num_classes", [2, 400, 1200, 2000])
@pytest.mark.parametrize("per_class", [1, 2, 5, 10, 30])
def test_a_tenth_of_all_memories_is_held_out(num_classes, per_class):
    labels = np.repeat(np.arange(num_classes), per_class)
    assert stratified_mask(labels, np.zeros_like(labels), 0.1).sum() == pytest.approx(0.1 * len(labels), abs=2)
    assert stratified_mask(labels, np.zeros_like(labels), 0.1).any()


def test_a_tenth_is_held_out_of_classes_of_very_unequal_size():
    counts = np.random.default_rng(0).geometric(0.02, 1000)
    labels = np.repeat(np.arange(1000), counts)
    mask = mask_of(labels)
    assert mask.sum() == pytest.approx(0.1 * len(labels), rel=0.02)
    assert np.abs(np.bincount(labels[mask], minlength=1000) - 0.1 * counts).max() < 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("per_class", [2, 3, 5, 20])
def test_a_class_keeps_a_memory_for_replay(share, per_class):
    labels = np.repeat(np.arange(300), per_class)
    assert np.bincount(labels[~mask_of(labels, share)], minlength=300).min() >= 1


def test_what_is_held_out_of_a_class_stays_when_others_come_or_shrink():
    few, more = np.repeat(np.arange(50), 7), np.repeat(np.arange(80), np.r_[np.full(40, 3), np.full(40, 7)])
    for label in range(40, 50):
        assert mask_of(few)[few == label].tolist() == mask_of(more)[more == label].tolist()


def test_the_only_memory_of_a_class_is_measured_on_and_still_replayed():
    labels, tasks = np.arange(500), np.zeros(500, dtype=np.int32)
    assert stratified_mask(labels, tasks, 0.1).sum() == pytest.approx(50, abs=2)
    assert not held_out_mask(labels, tasks, 0.1).any()


@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize("per_class", [1, 2, 3, 5])
def test_few_memories_of_few_classes_are_enough_to_measure_on_one(num_classes, per_class):
    labels, tasks = np.repeat(np.arange(num_classes), per_class), np.zeros(num_classes * per_class, dtype=np.int32)
    assert 1 <= stratified_mask(labels, tasks, 0.1).sum() <= 2
    assert held_out_mask(labels, tasks, 0.1).sum() == (
        stratified_mask(labels, tasks, 0.1).sum() if per_class > 1 else 0
    )


def test_nothing_is_held_out_with_a_share_of_zero_or_of_nothing():
    assert not mask_of(np.repeat(np.arange(9), 9), 0.0).any()
    assert mask_of([], 0.1).shape == (0,)


@pytest.mark.parametrize("num_tasks", [2, 5, 10])
def test_memories_of_every_task_are_held_out_though_they_take_turns(num_tasks):
    tasks = np.tile(np.arange(num_tasks), 20)
    out = held_out_mask(np.zeros(len(tasks), dtype=np.int64), tasks, 0.1)
    assert np.bincount(tasks[out]).tolist() == [2] * num_tasks


def test_positions_are_spread_at_equal_distances():
    assert subsample(np.arange(5), 5).tolist() == [0, 1, 2, 3, 4]
    assert subsample(np.arange(10, 20), 4).tolist() == [10, 12, 15, 17]
