"""Importance: the diagonal of the empirical Fisher information, and its top share."""

from dataclasses import replace

import pytest
import torch

from hf_wakesleep import ClassIncrementalStream, SemiParametricMemory, TaskStream
from hf_wakesleep.learning.freezing import freeze_synapses, importance, log_likelihood_gradients, most_important


def test_importance_is_the_mean_squared_gradient_of_the_log_likelihood(asleep, make_args):
    model, memory, reader = asleep
    args = make_args(per_device_eval_batch_size=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = importance(model, memory, reader, replace(args.sleep_config(2), importance_images=7))
    positions = memory.balanced_sampler().draw(7, (args.seed, 2))
    model.eval()
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for position in positions:
        image, label = memory.read([position])
        model.zero_grad()
        model(reader.normalise(image).to(model.device)).classifier_logits.softmax(dim=-1)[0, label].log().backward()
        for name, parameter in model.named_parameters():
            expected[name] += 0 if parameter.grad is None else parameter.grad**2 / 7
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_importance_repeats_bit_for_bit_whatever_learns(asleep, make_args):
    model, memory, reader = asleep
    config = replace(make_args().sleep_config(0), importance_images=4)
    first = importance(model, memory, reader, config)
    model.backbone.requires_grad_(False)
    second = importance(model.train(), memory, reader, config)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = importance(model, memory, reader, replace(config, rng_key=(42, 1)))
    assert not torch.equal(first["head.classifier.weight"], other["head.classifier.weight"])


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, []), (0.2, [1]), (0.25, [1, 2]), (0.99, [1, 2, 5])],
)
def test_the_top_share_is_the_first_of_equals_and_no_zeros(fraction, expected):
    value = torch.tensor([0.0, 5.0, 4.0, 0.0, 0.0, 4.0, 0.0, 0.0])
    mask = most_important(value.view(2, 4), fraction).flatten()
    assert mask.nonzero().flatten().tolist() == expected


def test_a_scalar_is_never_frozen():
    assert not most_important(torch.tensor(3.0), 0.99)


def test_gradients_of_the_log_likelihood_are_those_of_autograd():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 3, 3])
    (expected,) = torch.autograd.grad(logits.log_softmax(dim=-1)[range(5), labels].sum(), logits)
    torch.testing.assert_close(log_likelihood_gradients(logits.detach(), labels), expected)


@pytest.mark.parametrize("gap", [30.0, 200.0, 5000.0])
def test_of_tiny_gradients_the_ratios_are_kept(gap):
    logits = torch.tensor([[gap, 0.0, 1.0], [0.0, gap + 2, 1.0]], dtype=torch.float64)
    found = log_likelihood_gradients(logits, torch.tensor([0, 1])) / 1e-6
    e = torch.e
    expected = torch.tensor([[1 + e, -1, -e], [-(e**-2), (1 + e) * e**-2, -(e**-1)]], dtype=torch.float64) / (1 + e)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])
def test_the_top_share_is_frozen_however_well_the_classes_are_apart(asleep, make_args, factor):
    """With a classifier from LDA, the loss of digits is small; times a factor it is 0, and so are its gradients."""
    model, memory, reader = asleep
    labels = torch.from_numpy(memory.labels).to(model.eval().device)
    with torch.no_grad():
        features = model.extract_features(reader.normalise(memory.read(range(len(memory)))[0]).to(model.device))
        model.head.lda.update(features, labels)
        model.head.start_from_lda(0, 0.0)
        for parameter in model.head.classifier.parameters():
            parameter.mul_(factor)
        is_right = (model.head.classifier(features).argmax(dim=-1) == labels).cpu()
    known = SemiParametricMemory(memory.codec, None, memory.classes)
    known.write(memory.codes(is_right.nonzero()[:, 0].numpy()), memory.labels[is_right.numpy()], task=0)
    config = replace(make_args(freeze_fraction=0.1).sleep_config(0), importance_images=8)
    for name, mask in freeze_synapses(model, known, reader, config).masks(model).items():
        assert mask.sum() == int(0.1 * mask.numel()), name


def test_the_top_share_is_frozen_after_a_task_of_one_class(make_trainer, digits):
    stream = ClassIncrementalStream(digits, classes_per_task=[1, 3])
    trainer = make_trainer(stream=TaskStream(stream[:1], stream.protocol), freeze_fraction=0.1)
    trainer.train()
    for mask in trainer.memory.synapses.masks(trainer.model).values():
        assert mask.sum() == int(0.1 * mask.numel())
