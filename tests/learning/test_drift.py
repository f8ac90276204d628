"""Drift: which memories tell it, and LDA carried along."""

import copy

import numpy as np
import pytest
import torch

from hf_wakesleep import RawCodec, SemiParametricMemory
from hf_wakesleep.learning.drift import MOST_HELD_OUT, MOST_REPLAYED, carry, drift_features, drift_positions
from hf_wakesleep.learning.lda import update_lda
from hf_wakesleep.memory.sampling import held_out_mask
from hf_wakesleep.model.head_wakesleep import LinearDiscriminant

DIM, CLASSES, IMAGES = 6, 5, 4000


def lda_of(features, labels):
    lda = LinearDiscriminant(DIM, CLASSES, 0.1)
    lda.update(features, labels)
    return lda


def carry_all(lda, before, after, labels):
    """Carry statistics that are exact for all classes."""
    carry(lda, before, after, labels, torch.ones_like(labels, dtype=torch.bool))


@pytest.fixture
def clouds():
    """Return features (N, D) around five class means, with a full covariance, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    means = 3 * torch.randn(CLASSES, DIM, generator=generator)
    root = torch.randn(DIM, DIM, generator=generator)
    return means[labels] + torch.randn(IMAGES, DIM, generator=generator) @ root, labels


@pytest.fixture
def drift():
    """Return a rotation, a stretch and a shift of features, small as in a sleep."""
    generator = torch.Generator().manual_seed(1)
    linear = torch.eye(DIM) + 0.2 * torch.randn(DIM, DIM, generator=generator)
    return lambda features: features @ linear + 0.5


def test_without_drift_nothing_changes(clouds):
    lda = lda_of(*clouds)
    expected = copy.deepcopy(lda.state_dict())
    carry_all(lda, clouds[0][::49], clouds[0][::49], clouds[1][::49])
    torch.testing.assert_close(lda.state_dict(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("every", [9, 49])
def test_a_linear_drift_of_a_few_carries_the_statistics_of_all(clouds, drift, every):
    features, labels = clouds
    lda, expected = lda_of(features, labels), lda_of(drift(features), labels)
    carry_all(lda, features[::every], drift(features[::every]), labels[::every])
    anew = lda_of(drift(features[::every]), labels[::every])
    assert (lda.means - expected.means).norm() < 0.2 * (anew.means - expected.means).norm()
    gap, gap_anew = ((other.covariance() - expected.covariance()).norm() for other in (lda, anew))
    assert gap < 0.5 * gap_anew
    assert lda.counts.tolist() == [IMAGES // CLASSES] * CLASSES


def test_one_memory_of_each_class_is_enough_to_follow_a_shift(clouds):
    features, labels = clouds
    lda, expected = lda_of(features, labels), lda_of(features + 2.0, labels)
    carry_all(lda, features[:CLASSES], features[:CLASSES] + 2.0, labels[:CLASSES])
    torch.testing.assert_close(lda.means, expected.means, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(lda.covariance(), expected.covariance(), rtol=1e-3, atol=1e-2)


def test_a_class_that_moves_on_its_own_is_followed(clouds):
    features, labels = clouds
    moved = features + 4.0 * (labels == 2)[:, None]
    lda, expected = lda_of(features, labels), lda_of(moved, labels)
    carry_all(lda, features[::19], moved[::19], labels[::19])
    assert (lda.means - expected.means).norm() < 0.1 * 4.0 * DIM**0.5


def test_features_that_know_nothing_of_those_before_leave_the_statistics_of_memory(clouds):
    features, labels = clouds
    new = features.flip(1)[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(2))] * 0.1
    new += torch.nn.functional.one_hot(labels, DIM) * 5.0
    lda, expected = lda_of(features, labels), lda_of(new, labels)
    carry_all(lda, features[::4], new[::4], labels[::4])
    assert (lda.means - expected.means).norm() < 0.1 * expected.means.norm()
    assert (lda(new).argmax(dim=1) == labels).float().mean() > 0.99


@pytest.mark.parametrize("number", [5, 6, 8, 10])
def test_fewer_memories_than_dimensions_give_no_wild_map(clouds, number):
    features, labels = clouds
    lda, expected = lda_of(features, labels), lda_of(features + 1.0, labels)
    noise = 0.3 * torch.randn(number, DIM, generator=torch.Generator().manual_seed(6))
    carry_all(lda, features[:number], features[:number] + 1.0 + noise, labels[:number])
    assert (lda.means - expected.means).norm() < 2.0
    assert (lda.covariance() - expected.covariance()).norm() < expected.covariance().norm()


def test_the_covariance_stays_one(clouds, drift):
    features, labels = clouds
    lda = lda_of(features, labels)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        rows = torch.randint(IMAGES, (40,), generator=generator)
        carry_all(lda, features[rows], drift(features[rows]), labels[rows])
    lengths = torch.linalg.eigvalsh(lda.covariance().double())
    assert lengths.min() > -1e-6 * lengths.max()  # as precise as float32
    assert lda.means.isfinite().all()


def test_errors_do_not_add_up_where_memories_tell_better(clouds):
    """Drift that no linear map explains, forty times; memory holds all images, so theirs are the statistics."""
    features, labels = clouds
    lda, generator = lda_of(features, labels), torch.Generator().manual_seed(5)
    new_task = labels == 4  # always exact, as that of the task at hand is
    for _ in range(40):
        moved = torch.tanh(features @ torch.randn(DIM, DIM, generator=generator) / 2) * 5
        expected = lda_of(moved, labels)
        carry(lda, features, moved, labels, new_task)
        lda.means[4] = expected.means[4]
        features = moved
    assert (lda.means - expected.means).norm() < 0.02 * expected.means.norm()


@pytest.mark.parametrize("brings_all_classes", [False, True])
def test_a_mean_that_strays_is_drawn_back_to_its_memories(clouds, brings_all_classes):
    """As far as chance explains, also where every task brings all classes, as in new domains of known ones."""
    features, labels = clouds
    lda, expected = lda_of(features, labels), lda_of(features, labels)
    lda.means[1] += 5.0
    is_new = torch.arange(IMAGES) % 3 == 0 if brings_all_classes else labels == 4
    carry(lda, features, features, labels, is_new)
    chance = (expected.covariance().trace() / (IMAGES // CLASSES)).sqrt()
    apart = (lda.means - expected.means).norm(dim=1)
    assert apart[1] < 1.1 * chance < 5.0
    assert apart[[0, 2, 3, 4]].max() < 0.1 * chance


def test_a_class_without_images_stays_empty(clouds):
    features, labels = clouds
    known = labels < 3
    lda = lda_of(features[known], labels[known])
    carry_all(lda, features[known][:30], features[known][:30] + 1.0, labels[known][:30])
    assert lda.means[3:].eq(0).all()
    assert lda.counts[3:].eq(0).all()


def test_the_drift_of_few_memories_is_looked_at_and_of_many_a_share_of_each_class(asleep):
    _, memory, _ = asleep
    assert drift_positions(memory, 0.1).tolist() == list(range(len(memory)))
    many = SemiParametricMemory(RawCodec(), None, memory.classes)
    codes = many.codec.encode(torch.zeros(8000, 3, 2, 2, dtype=torch.uint8))
    many.write(codes, np.arange(8000) % 4, task=0)
    positions = drift_positions(many, 0.1)
    is_held_out = held_out_mask(many.labels, many.tasks, 0.1)[positions]
    assert is_held_out.sum() == MOST_HELD_OUT
    assert MOST_REPLAYED <= len(positions) - MOST_HELD_OUT <= MOST_REPLAYED + 4
    share = (MOST_REPLAYED + MOST_HELD_OUT) // 4
    assert set(np.bincount(many.labels[positions])) <= {share, share + 1}
    few = SemiParametricMemory(RawCodec(), None, [*memory.classes, "rare"])
    few.write([*codes, codes[0]], [*(np.arange(8000) % 4), 4], task=0)
    assert (few.labels[drift_positions(few, 0.1)] == 4).sum() == 1


def test_lda_follows_a_trained_backbone_with_the_statistics_of_all_images(asleep, make_args):
    """A quarter of the images is remembered; the statistics of all of them survive a change of the weights."""
    model, memory, reader = asleep
    images, labels = memory.read(np.arange(len(memory)))
    pixel_values = reader.normalise(images).to(model.device)
    with torch.no_grad():
        model.head.lda.reset()
        model.head.lda.update(model.eval().extract_features(pixel_values), labels.to(model.device))
    few = SemiParametricMemory(RawCodec(), None, memory.classes)
    few.write(few.codec.encode(images[::4]), labels[::4].numpy(), task=0)
    args = make_args()
    before = drift_features(model, few, reader, args.sleep_config())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
            parameter.add_(0.02 * noise.to(model.device))
        expected = LinearDiscriminant(32, 4, model.config.lda_shrinkage)
        expected.update(model.extract_features(pixel_values).cpu(), labels)
        anew = LinearDiscriminant(32, 4, model.config.lda_shrinkage)
        anew.update(model.extract_features(pixel_values[::4]).cpu(), labels[::4])
    update_lda(model, few, reader, args.sleep_config(), features_before=before)
    gaps = {
        name: (lda.means.cpu() - expected.means).norm() for name, lda in (("carried", model.head.lda), ("anew", anew))
    }
    assert gaps["carried"] < 0.5 * gaps["anew"]
