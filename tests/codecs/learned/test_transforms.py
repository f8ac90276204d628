"""Transforms: they start as a cosine transform, and keep the shape of an image."""

import torch

from hf_wakesleep.codecs.learned.transforms import NUM_LATENTS, Analysis, Synthesis, cosine_basis, step_size


def test_the_cosine_basis_is_orthonormal():
    basis = cosine_basis()
    assert basis.shape == (NUM_LATENTS, 192)
    assert torch.allclose(basis @ basis.T, torch.eye(NUM_LATENTS), atol=1e-5)


def test_untrained_transforms_give_back_a_smooth_image():
    ramp = torch.linspace(-100, 100, 32).round()
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)])[None]
    index = torch.tensor([20.0])
    latents = Analysis()(image, index)
    assert latents.shape == (1, NUM_LATENTS, 4, 4)
    assert (Synthesis()(latents, index) - image).abs().mean() < 2


def test_steps_double_every_eight_indices_and_are_multiples_of_a_quarter():
    steps = step_size(torch.arange(64.0))
    assert steps[0] == 8
    assert steps[40] == 256
    assert torch.equal(steps * 4, (steps * 4).round())
