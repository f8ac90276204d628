"""ContextModel: every latent is told once, by what was coded before it only."""

import math

import pytest
import torch

from hf_wakesleep.codecs.learned.context_model import ContextModel, coding_passes, logistic_bits
from hf_wakesleep.codecs.learned.transforms import NUM_LATENTS


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4), (3, 2)])
def test_every_latent_is_coded_once(shape):
    coded = torch.zeros(NUM_LATENTS, *shape)
    for one in coding_passes(*shape):
        assert torch.equal(coded[one.start], one.known)
        coded.flatten(1)[one.start : one.stop, one.positions] += 1
    assert torch.equal(coded, torch.ones_like(coded))


@torch.no_grad()
def test_what_is_coded_later_does_not_matter():
    model, index = ContextModel().eval(), torch.tensor([30.0])
    latents = torch.randint(-3, 4, (1, NUM_LATENTS, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    means, scales = model(latents, index)
    seen = torch.zeros_like(latents)
    for one, mean, scale in model.predict_passes(seen, index):
        here = (slice(None), slice(one.start, one.stop), one.positions)
        assert torch.equal(mean, means.flatten(2)[here])
        assert torch.equal(scale, scales.flatten(2)[here])
        seen.flatten(2)[here] = latents.flatten(2)[here]


def test_bits_are_those_of_a_distribution():
    values = torch.arange(-200, 201).double()
    for mean, scale in ((0.0, 3.0), (0.4, 12.0), (-7.3, 20.0)):
        bits = logistic_bits(values, torch.full_like(values, mean), torch.full_like(values, scale))
        assert math.isclose(torch.exp2(-bits).sum().item(), 1, abs_tol=1e-5)
