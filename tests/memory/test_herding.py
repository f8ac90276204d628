"""Herding: the greedy order, against trying every image."""

import numpy as np
import pytest

from hf_wakesleep.memory.sampling import herding_ranks


def slow_order(features):
    """Return the order of Rebuffi et al. 2017, algorithm 4, by trying every image that is left."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen = []
    for k in range(1, len(features) + 1):
        distances = {
            row: np.linalg.norm(features.mean(axis=0) - features[[*chosen, row]].sum(axis=0) / k)
            for row in range(len(features))
            if row not in chosen
        }
        chosen.append(min(distances, key=distances.get))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_the_greedy_choice(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, 60)
    features = generator.normal(size=(60, 8)) + labels[:, None]
    ranks = herding_ranks(features.astype(np.float32), labels)
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        assert rows[np.argsort(ranks[rows])].tolist() == rows[slow_order(features[rows].astype(np.float32))].tolist()


def test_the_first_chosen_are_nearer_to_the_mean_than_a_random_sample():
    features = np.random.default_rng(0).normal(size=(200, 16)) + 1
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ranks = herding_ranks(features, np.zeros(200, dtype=int))
    distance = np.linalg.norm(features[ranks < 10].mean(axis=0) - features.mean(axis=0))
    others = [
        np.linalg.norm(
            features[np.random.default_rng(seed).permutation(200)[:10]].mean(axis=0) - features.mean(axis=0)
        )
        for seed in range(100)
    ]
    assert distance < min(others)


def test_equal_and_empty_features_have_an_order_too():
    assert herding_ranks(np.zeros((3, 4)), np.zeros(3, dtype=int)).tolist() == [0, 1, 2]
    assert herding_ranks(np.ones((3, 4)), np.asarray([0, 1, 0])).tolist() == [0, 0, 1]
    assert herding_ranks(np.zeros((0, 4)), np.zeros(0, dtype=int)).tolist() == []
