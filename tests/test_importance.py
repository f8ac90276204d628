"""Importance: the diagonal of the empirical Fisher information, and its top share."""

import pytest
import torch

from hf_wakesleep.importance import importance, most_important


def test_importance_is_the_mean_squared_gradient_of_the_log_likelihood(asleep, make_args):
    model, memory, reader = asleep
    args = make_args(importance_images=7, per_device_eval_batch_size=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = importance(model, memory, reader, args, task=2)
    positions = memory.balanced().positions(7, (args.seed, 2))
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
    args = make_args(importance_images=4)
    first = importance(model, memory, reader, args, task=0)
    model.backbone.requires_grad_(False)
    second = importance(model.train(), memory, reader, args, task=0)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = importance(model, memory, reader, args, task=1)
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
