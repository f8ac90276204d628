"""Recombination: when sleep dreams, and what it mixes."""

import copy

import numpy as np
import torch
from conftest import equal_states

from hf_wakesleep import consolidate
from hf_wakesleep.learning.rem import is_rem, recombine


def test_the_last_share_of_the_steps_is_rem():
    assert [is_rem(step, 10, 0.3) for step in range(10)] == [False] * 7 + [True] * 3
    assert not any(is_rem(step, 10, 0.0) for step in range(10))
    assert all(is_rem(step, 10, 1.0) for step in range(10))


def test_targets_are_mixed_as_the_pixels_are():
    torch.manual_seed(0)
    labels = torch.arange(4)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)  # an image of class c is c all over
    mixed, targets = recombine(images, labels, 5)
    assert mixed.shape == images.shape
    assert targets.shape == (4, 5)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    assert (targets > 0).sum(dim=1).max() == 2
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(5.0))


def test_rem_and_nrem_report_losses_of_their_own(asleep, make_args):
    model, memory, reader = asleep
    report = consolidate(model, memory, make_args(sleep_steps=12, rem_share=0.5).sleep_config(), reader=reader)
    assert report.rem_loss > 0
    assert report.loss > 0
    assert np.isnan(consolidate(model, memory, make_args(rem_share=1.0).sleep_config(), reader=reader).loss)


def test_a_sleep_with_dreams_teaches_and_is_the_same_again(asleep, make_args):
    model, memory, reader = asleep
    twin = copy.deepcopy(model)
    args = make_args(sleep_steps=100, sleep_batch_size=32, rem_share=0.4)
    reports = [consolidate(sleeper, memory, args.sleep_config(), reader=reader) for sleeper in (model, twin)]
    assert equal_states(model, twin)
    assert reports[0].held_out_accuracy > 0.7 > reports[0].held_out_accuracy_before
