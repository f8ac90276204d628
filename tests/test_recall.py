"""Recall from memory: statistics, held-out memories, and the weight that they set."""

import math

import numpy as np
import pytest
import torch
from conftest import NAMES

from hf_wakesleep import RawCodec, SemiParametricMemory
from hf_wakesleep.balance import evenly
from hf_wakesleep.head_wakesleep import Recall
from hf_wakesleep.recall import update_recall


def test_statistics_are_those_of_all_decoded_memories(asleep, make_args):
    model, memory, reader = asleep
    update_recall(model, memory, reader, make_args(per_device_eval_batch_size=7))
    images, labels = memory.read(np.arange(len(memory)))
    with torch.no_grad():
        features = model.eval().extract_features(reader.normalise(images).to(model.device)).cpu()
    expected, recall = Recall(32, 4, model.config.recall_shrinkage), model.head.recall.cpu()
    expected.update(features, labels)
    assert recall.counts.tolist() == [100] * 4
    torch.testing.assert_close(recall.means, expected.means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recall.scatter, expected.scatter, rtol=1e-3, atol=1e-2)


def test_the_weight_of_recall_follows_the_better_half(asleep, make_args):
    model, memory, reader = asleep
    torch.nn.init.zeros_(model.head.classifier.weight)  # a classifier that knows nothing
    update_recall(model, memory, reader, make_args())
    assert model.config.recall_weight > 0.5
    update_recall(model, memory, reader, make_args(recall_weight=0.25))
    assert model.config.recall_weight == 0.25


def test_too_few_memories_to_hold_some_out_leave_the_weight_as_it_was(asleep, make_args):
    model, memory, reader = asleep
    few = SemiParametricMemory(RawCodec(), None, NAMES)
    images, _ = memory.read(np.arange(4))
    few.write(few.codec.encode(images), [0, 1, 2, 3], task=0)
    assert math.isnan(update_recall(model, few, reader, make_args()))
    assert model.config.recall_weight == 0.5


def test_every_tenth_memory_of_a_class_is_held_out():
    labels = np.repeat([0, 1, 2], [25, 9, 10])
    positions = np.flatnonzero(evenly(labels, np.zeros(44, dtype=np.int32), 0.1))
    assert positions.tolist() == [9, 19, 43]


@pytest.mark.parametrize("num_tasks", [2, 5, 10])
def test_memories_of_every_task_are_held_out_though_they_take_turns(num_tasks):
    tasks = np.tile(np.arange(num_tasks), 20)
    out = evenly(np.zeros(len(tasks), dtype=np.int64), tasks, 0.1)
    assert np.bincount(tasks[out]).tolist() == [2] * num_tasks
