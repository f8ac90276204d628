"""SemiParametricHead: growth, and LDA against a slow obvious reference."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hf_wakesleep import SemiParametricHead, WakeSleepConfig
from hf_wakesleep.model.head_wakesleep import LinearDiscriminant

D = 6


def features_and_labels(seed=0, size=60, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (size,), generator=generator)
    features = torch.randn(size, D, generator=generator) + 2 * torch.randn(classes, D, generator=generator)[labels]
    return features, labels


def make_head(classes=3, **config):
    head = SemiParametricHead(WakeSleepConfig(id2label={i: str(i) for i in range(classes)}, **config), D)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def test_lda_is_the_shrunk_linear_discriminant_of_means_drawn_together():
    features, labels = features_and_labels()
    shrinkage, classes = 0.3, 4
    lda = LinearDiscriminant(D, classes, shrinkage)
    lda.update(features, labels)

    data = features.double()
    means = torch.stack([data[labels == c].mean(dim=0) for c in range(classes)])
    covariance = torch.zeros(D, D, dtype=torch.double)
    for row, label in zip(data, labels, strict=True):
        covariance += torch.outer(row - means[label], row - means[label])
    covariance /= len(data) - classes
    precision = torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * covariance.trace() / D * torch.eye(D))
    grand, noise, counts = means.mean(dim=0), (precision @ covariance).trace(), labels.bincount()
    spread = sum((means[c] - grand) @ precision @ (means[c] - grand) for c in range(classes)) / (classes - 1)
    spread -= noise * sum(1 / counts[c] for c in range(classes)) / classes
    expected = []
    for c in range(classes):
        mean = grand + spread / (spread + noise / counts[c]) * (means[c] - grand)
        expected.append(data @ precision @ mean - 0.5 * mean @ precision @ mean)
    expected = torch.stack(expected, dim=1)
    torch.testing.assert_close(lda(features), expected.float(), rtol=1e-4, atol=1e-4)


@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_statistics_depend_neither_on_the_order_nor_on_the_batches(random, num_batches):
    features, labels = features_and_labels()
    whole = LinearDiscriminant(D, 4, 0.3)
    whole.update(features, labels)
    order = list(range(len(labels)))
    random.shuffle(order)
    parts = LinearDiscriminant(D, 4, 0.3)
    for part in torch.tensor(order).tensor_split(num_batches):
        parts.update(features[part], labels[part])
    assert torch.equal(whole.counts, parts.counts)
    torch.testing.assert_close(whole.means, parts.means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.scatter, parts.scatter, rtol=1e-4, atol=1e-3)


def test_classes_learned_one_after_another_give_the_statistics_of_all_at_once():
    features, labels = features_and_labels()
    whole = LinearDiscriminant(D, 4, 0.3)
    whole.update(features, labels)
    grown = LinearDiscriminant(D, 0, 0.3)
    for first in (0, 2):
        grown.grow(2)
        part = (labels == first) | (labels == first + 1)
        grown.update(features[part], labels[part])
    torch.testing.assert_close(grown(features), whole(features), rtol=1e-4, atol=1e-4)


def test_lda_without_statistics_says_nothing_and_never_names_a_class_without_images():
    lda = LinearDiscriminant(D, 2, 0.3)
    assert torch.equal(lda(torch.randn(3, D)), torch.zeros(3, 2))
    lda.update(torch.randn(1, D), torch.tensor([1]))
    assert lda(torch.randn(3, D)).argmax(dim=-1).tolist() == [1, 1, 1]
    assert not lda(torch.randn(3, D)).isnan().any()


def test_an_empty_batch_changes_nothing():
    lda = LinearDiscriminant(D, 4, 0.3)
    lda.update(*features_and_labels())
    before = {name: value.clone() for name, value in lda.state_dict().items()}
    lda.update(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    assert all(torch.equal(before[name], value) for name, value in lda.state_dict().items())


def test_statistics_keep_their_precision_in_half_precision():
    lda = LinearDiscriminant(D, 4, 0.3)
    features, labels = features_and_labels()
    lda.update(1000 * features, labels)
    before = lda(1000 * features)
    lda.half()
    assert lda.scatter.dtype == torch.float32
    assert torch.equal(lda(1000 * features), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lda(1000 * features).dtype == torch.float32


def test_num_bytes_counts_every_statistic():
    lda = LinearDiscriminant(D, 4, 0.3)
    assert lda.num_bytes == 4 * 8 + 4 * D * 4 + D * (D + 1) // 2 * 4
    before = lda.num_bytes
    lda.grow(3)
    assert lda.num_bytes - before == 3 * lda.bytes_per_class


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_growth_keeps_what_was_there_bit_for_bit(classifier):
    head = make_head(classifier=classifier)
    features, labels = features_and_labels(classes=3)
    head.lda.update(features, labels)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    old_logits = head.classifier(features)
    head.grow(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(head.classifier(features)[:, :3], old_logits)
    for name, value in head.state_dict().items():
        old = before[name]
        assert torch.equal(value[: len(old)] if value.ndim else value, old)


def test_growth_is_the_same_for_the_same_generator():
    heads = [make_head() for _ in range(2)]
    for head in heads:
        head.grow(2, torch.Generator().manual_seed(7))
    assert torch.equal(heads[0].classifier.weight[3:], heads[1].classifier.weight[3:])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_logits_are_the_log_of_the_mix_of_both_softmaxes(weight):
    head = make_head(lda_weight=weight)
    features, labels = features_and_labels(classes=3)
    head.lda.update(features, labels)
    logits, classifier_logits, lda_logits = head(features)
    expected = (1 - weight) * classifier_logits.softmax(dim=-1) + weight * lda_logits.softmax(dim=-1)
    torch.testing.assert_close(logits.exp(), expected)
    assert not logits.isnan().any()


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_new_units_that_start_from_lda_answer_as_lda_does(classifier):
    head = make_head(classifier=classifier)
    features, labels = features_and_labels(classes=3)
    head.lda.update(features, labels)
    if classifier == "cosine":
        torch.nn.init.constant_(head.classifier.scale, 16.0)
    head.start_from_lda(0)
    answers = head.classifier(features).argmax(dim=-1)
    assert (answers == labels).float().mean() > 0.8
    if classifier == "linear":
        assert torch.equal(answers, head.lda(features).argmax(dim=-1))


def test_first_units_that_start_from_lda_are_as_sure_as_smoothed_labels_are():
    head = make_head()
    features, labels = features_and_labels(classes=3)
    head.lda.update(20 * features, labels)
    losses = {}
    for smoothing in (0.0, 0.1):
        head.start_from_lda(0, smoothing)
        logits = head.classifier(head.lda.means)
        losses[smoothing] = F.cross_entropy(logits, torch.arange(3), label_smoothing=0.1).item()
        assert logits.argmax(dim=-1).tolist() == [0, 1, 2]
    least = F.cross_entropy(4.0 * torch.eye(3), torch.arange(3), label_smoothing=0.1).item()
    assert losses[0.1] < 2 * least < losses[0.0]


def test_new_units_join_the_old_ones_on_their_own_scale():
    """A classifier that is LDA times three, shifted alike in all classes, goes on so."""
    features, labels = features_and_labels(classes=4)
    head = make_head()
    head.grow(1)
    head.lda.update(features, labels)
    weights, biases = head.lda.solve()
    shift = torch.randn(D)
    with torch.no_grad():
        head.classifier.weight.copy_(3 * weights + shift)
        head.classifier.bias.copy_(3 * biases + 0.7)
        expected = copy.deepcopy(head.classifier.state_dict())
        head.classifier.weight[3], head.classifier.bias[3] = 0.0, 0.0
    head.start_from_lda(3)
    torch.testing.assert_close(head.classifier.weight, expected["weight"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(head.classifier.bias, expected["bias"], rtol=1e-3, atol=1e-3)


def test_new_units_shrink_the_covariance_by_as_much_as_lasts_unless_that_is_given():
    features, labels = features_and_labels(size=600, classes=3)
    features = torch.linspace(0.1, 2, D) * features
    heads = {given: make_head(lda_shrinkage=given) for given in (None, 0.3, 0.05)}
    for head in heads.values():
        head.lda.update(features, labels)
        head.start_from_lda(0)
    weights = {given: head.classifier.weight for given, head in heads.items()}
    assert heads[None].lda.find_shrinkage() < 0.2
    torch.testing.assert_close(weights[None], weights[0.3])
    assert not torch.allclose(weights[None], weights[0.05], rtol=0.01)


def test_units_of_classes_without_statistics_stay_as_they_are():
    head = make_head()
    features, labels = features_and_labels(classes=2)
    head.lda.update(features, labels)
    before = head.classifier.weight[2].clone()
    head.start_from_lda(0)
    assert torch.equal(head.classifier.weight[2], before)


def test_what_predicts_is_there_before_the_first_forward_pass_and_is_not_saved():
    features, labels = features_and_labels()
    lda = LinearDiscriminant(D, 4, 0.3)
    lda.update(features, labels)
    loaded = LinearDiscriminant(D, 4, 0.3)
    loaded.load_state_dict(lda.state_dict())
    weight, bias = loaded.solve()
    assert torch.equal(loaded.weight, weight)
    assert torch.equal(loaded.bias, bias)
    assert torch.equal(loaded(features), lda(features))
    assert {*loaded.state_dict()} == {"counts", "means", "scatter"}


@pytest.mark.parametrize("change", ["grow", "set_moments", "reset", "half"])
def test_what_predicts_follows_every_change_of_the_statistics_at_once(change):
    features, labels = features_and_labels()
    lda = LinearDiscriminant(D, 4, 0.3)
    lda.update(features, labels)
    lda.refresh()
    changes = {
        "grow": lambda: lda.grow(2),
        "set_moments": lambda: lda.set_moments(lda.means + 1, 2 * lda.covariance()),
        "reset": lda.reset,
        "half": lda.half,
    }
    changes[change]()
    expected = (torch.zeros(4, D), torch.zeros(4)) if change == "reset" else lda.solve()
    assert torch.equal(lda.weight, expected[0])
    assert torch.equal(lda.bias, expected[1])
    assert lda.weight.dtype == lda.bias.dtype == torch.float32


def test_nobody_gets_predictions_from_before_an_update():
    features, labels = features_and_labels()
    lda = LinearDiscriminant(D, 4, 0.3)
    for part in (labels < 2, labels >= 2):
        lda.update(features[part], labels[part])
        weight, bias = lda.solve()
        assert torch.equal(lda(features), F.linear(features, weight, bias))


def test_a_pass_without_gradients_solves_once(monkeypatch):
    solved, solve = [], LinearDiscriminant.solve
    monkeypatch.setattr(LinearDiscriminant, "solve", lambda lda, *args: solved.append(1) or solve(lda, *args))
    features, labels = features_and_labels()
    lda = LinearDiscriminant(D, 4, 0.3)
    for part in torch.arange(len(labels)).tensor_split(5):
        lda.update(features[part], labels[part])
    lda.refresh()
    for _ in range(3):
        lda(features)
    assert len(solved) == 1


def test_training_goes_on_after_everything_happened_in_inference_mode():
    features, labels = features_and_labels(classes=3)
    head = make_head()
    with torch.inference_mode():
        head.lda.update(features, labels)
        head.grow(1)
        head(features)
        head.lda.set_moments(head.lda.means, head.lda.covariance())
    assert not any(tensor.is_inference() for tensor in (*head.parameters(), *head.buffers()))
    features.requires_grad_(True)
    head(features)[0].sum().backward()
    head.lda.update(features.detach(), labels)
    assert features.grad.isfinite().all()
