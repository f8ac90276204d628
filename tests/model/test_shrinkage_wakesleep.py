"""Shrinkage of LDA: what is chosen from statistics against what the images themselves say, and few images a class."""

import math

import pytest
import torch

from hf_wakesleep.model.head_wakesleep import LinearDiscriminant
from hf_wakesleep.model.shrinkage_wakesleep import choose_shrinkage, mean_weights

CHOICES = [odds / (1 + odds) for odds in torch.logspace(-2, 2, 33, dtype=torch.float64).tolist()]


def draw(counts, dim=12, spread=1.0, seed=0):
    """Return features and labels, so many of each class; where features vary most, classes differ most."""
    means, lengths = class_means(len(counts), dim, spread, seed), torch.linspace(0.1, 2, dim)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    generator = torch.Generator().manual_seed(seed + 1)
    return means[labels] + lengths * torch.randn(len(labels), dim, generator=generator), labels


def class_means(classes, dim, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.linspace(0.1, 2, dim).square() * torch.randn(classes, dim, generator=generator)


def fitted(features, labels, classes, shrinkage=None):
    lda = LinearDiscriminant(features.shape[1], classes, shrinkage)
    lda.update(features, labels)
    return lda


def left_out_correlation(features, labels, covariance, shrinkage):
    """Return how ridge regression of indicators correlates with them where every image has the mean leverage."""
    data, indicators = features.double(), torch.nn.functional.one_hot(labels).double()
    data, indicators = data - data.mean(dim=0), indicators - indicators.mean(dim=0)
    freedom = len(data) - indicators.shape[1]
    ridge = freedom * shrinkage / (1 - shrinkage) * covariance.double().trace() / data.shape[1]
    hat = data @ torch.linalg.inv(data.T @ data + ridge * torch.eye(data.shape[1])) @ data.T + 1 / len(data)
    leverage = hat.trace() / len(data)
    answers = (hat @ indicators - leverage * indicators) / (1 - leverage)
    return ((answers * indicators).sum() / answers.norm() / indicators.norm()).item()


@pytest.mark.parametrize(
    ("counts", "dim", "spread"),
    [([20] * 6, 8, 0.3), ([40, 30, 20, 5, 3, 2], 12, 0.3), ([9] * 12, 12, 0.4), ([60] * 3, 16, 0.6)],
)
def test_the_chosen_shrinkage_answers_best_for_images_left_out(counts, dim, spread):
    features, labels = draw(counts, dim, spread)
    lda = fitted(features, labels, len(counts))
    scores = [left_out_correlation(features, labels, lda.covariance(), choice) for choice in CHOICES]
    best = CHOICES[scores.index(max(scores))]
    assert 0.01 < best < 0.99
    assert lda.find_shrinkage() == pytest.approx(best, rel=1e-6)


def test_lda_has_the_directions_of_the_ridge_regression_that_chooses_its_shrinkage():
    features, labels = draw([20] * 6)
    lda, shrinkage = fitted(features, labels, 6), 0.2
    covariance, means = lda.covariance().double(), lda.means.double()
    apart = means - means.mean(dim=0)
    identity = covariance.trace() / 12 * torch.eye(12)
    directions = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * identity, apart.T)
    total = 114 * covariance + 20 * apart.T @ apart
    ridge = torch.linalg.solve(total + 114 * shrinkage / (1 - shrinkage) * identity, apart.T)
    both = torch.cat([directions, ridge], dim=1)
    assert torch.linalg.matrix_rank(both, rtol=1e-5) == torch.linalg.matrix_rank(directions, rtol=1e-5) == 5


def test_few_images_are_shrunk_as_their_covariance_needs():
    """OAS minimises the expected squared error of the covariance; tried on classes that do not differ."""
    dim, errors, chosen = 12, torch.zeros(99), []
    truth = torch.linspace(0.1, 2, dim).square().diag()
    shares = torch.arange(1, 100)[:, None, None] / 100
    for seed in range(40):
        features, labels = draw([4, 4], spread=0.0, seed=seed)
        covariance = fitted(features, labels, 2).covariance()
        shrunk = (1 - shares) * covariance + shares * covariance.trace() / dim * torch.eye(dim)
        errors += (shrunk - truth).square().sum(dim=(1, 2))
        chosen.append(choose_shrinkage(torch.tensor([8]), torch.zeros(1, dim), covariance * 6 / 7))
    assert torch.tensor(chosen).mean() == pytest.approx((errors.argmin().item() + 1) / 100, abs=0.1)


def test_more_images_need_less_shrinkage():
    chosen = [fitted(*draw([count] * 5, spread=0.5), 5).find_shrinkage() for count in (1, 3, 10, 100, 1000)]
    assert chosen[0] == 1
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] < 0.1


def test_a_given_shrinkage_is_kept():
    assert fitted(*draw([5] * 5), 5, shrinkage=0.25).find_shrinkage() == 0.25


def test_answers_do_not_depend_on_position_scale_or_turn_of_the_features():
    features, labels = draw([1, 2, 5, 20], spread=0.5)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    expected = fitted(features, labels, 4)
    for moved in (features + 3, 100 * features, features @ turn):
        lda = fitted(moved, labels, 4)
        assert lda.find_shrinkage() == pytest.approx(expected.find_shrinkage(), rel=1e-4)
        torch.testing.assert_close(
            lda(moved).softmax(dim=-1), expected(features).softmax(dim=-1), rtol=1e-3, atol=1e-4
        )


def test_answers_follow_the_classes_wherever_they_stand_and_unknown_ones_change_nothing():
    features, labels = draw([1, 2, 5, 20], spread=0.5)
    places = torch.tensor([5, 0, 3, 2])  # 1 and 4 stay unknown
    expected, lda = fitted(features, labels, 4), fitted(features, places[labels], 6)
    torch.testing.assert_close(lda(features)[:, places], expected(features), rtol=1e-4, atol=1e-4)
    assert (lda(features)[:, [1, 4]] == -torch.inf).all()


def test_means_keep_the_share_that_estimates_the_true_means_best():
    generator = torch.Generator().manual_seed(0)
    dim, counts = 40, torch.tensor([1, 2, 4, 8]).repeat(50)
    truth = 0.7 * torch.randn(len(counts), dim, generator=generator)
    means = truth + torch.randn(len(counts), dim, generator=generator) / counts.sqrt()[:, None]
    centred = means - means.mean(dim=0)
    kept = mean_weights(counts, centred.square().sum(dim=1), torch.tensor(float(dim)), dim)
    for count in (1, 2, 4, 8):
        rows = counts == count
        best = (centred[rows] * truth[rows]).sum() / centred[rows].square().sum()  # least squares
        assert kept[rows].unique().item() == pytest.approx(best.item(), abs=0.03)
        assert kept[rows][0].item() == pytest.approx(0.49 / (0.49 + 1 / count), abs=0.03)


def test_classes_of_one_image_are_answered_among_classes_of_many():
    """The means of single images lie too far out, so that plain LDA hardly ever answers with them."""
    features, labels = draw([40] * 12 + [1] * 4, dim=32, spread=0.4)
    lda, tests = fitted(features, labels, 16), torch.arange(16).repeat_interleave(50)
    noise = torch.linspace(0.1, 2, 32) * torch.randn(800, 32, generator=torch.Generator().manual_seed(9))
    unseen = class_means(16, 32, 0.4)[tests] + noise
    covariance, means = lda.covariance(), lda.means
    precision = torch.linalg.inv(0.7 * covariance + 0.3 * covariance.trace() / 32 * torch.eye(32))
    plain = unseen @ precision @ means.T - 0.5 * ((means @ precision) * means).sum(dim=1)
    found = {
        name: [(logits.argmax(dim=-1) == tests)[part].float().mean().item() for part in (tests >= 12, tests < 12)]
        for name, logits in {"lda": lda(unseen), "plain": plain}.items()
    }
    assert found["lda"][0] > found["plain"][0] + 0.2, found
    assert found["lda"][1] > found["plain"][1] - 0.06, found


@pytest.mark.parametrize(
    ("counts", "dim", "spread"),
    [
        ([30], 6, 9.0),  # one class
        ([1], 6, 9.0),
        ([1] * 5, 6, 9.0),  # one image a class
        ([2] + [1] * 4, 6, 9.0),
        ([3] * 4, 64, 9.0),  # more dimensions than images
        ([10, 1], 1, 1000.0),  # one dimension
        ([5, 5], 6, 1e6),
        ([5, 5], 6, 1e-6),
        ([100_000, 1], 6, 9.0),
    ],
)
def test_any_number_of_images_and_classes_gives_finite_answers(counts, dim, spread):
    features, labels = draw(counts, dim, spread)
    lda = fitted(features, labels, len(counts))
    logits = lda(features)
    assert 0 < lda.find_shrinkage() <= 1
    assert logits.isfinite().all()
    if spread > 1:
        assert (logits.argmax(dim=-1) == labels).all()


def test_features_that_are_all_equal_give_equal_answers():
    lda = fitted(torch.ones(20, 6), torch.arange(20) % 4, 4)
    assert lda.find_shrinkage() == 1
    torch.testing.assert_close(lda(torch.randn(3, 6)).softmax(dim=-1), torch.full((3, 4), 0.25))


def test_classes_that_cannot_be_told_apart_are_still_answered_differently():
    features, labels = draw([2] * 5, spread=0.0, seed=3)
    lda = fitted(features, labels, 5)
    assert len(lda(features).argmax(dim=-1).unique()) > 1


@pytest.mark.parametrize("entry", range(3))
def test_statistics_that_are_not_finite_are_not_made_into_answers(entry):
    """Such as those of a training that diverged: both diagonal entries of the scatter, and the one beside them."""
    lda = fitted(*draw([5, 5], dim=2), 2)
    lda.scatter[entry] = math.nan
    lda.refresh()
    assert lda(torch.ones(1, 2)).isnan().any()


def test_ten_thousand_classes_of_few_images_are_told_apart():
    features, labels = draw([2] * 10_000, dim=24, spread=3.0)
    assert (fitted(features, labels, 10_000)(features[::100]).argmax(dim=-1) == labels[::100]).float().mean() > 0.95
