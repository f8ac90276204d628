"""Augmentation and the generators that drive it."""

import pytest
import torch

from hf_wakesleep.data.augmentation import CROP_SCALE, augment, seeded_generator

IMAGES = torch.rand(16, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_none_changes_nothing():
    assert augment(IMAGES, "none", seeded_generator(0)) is IMAGES


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_the_same_generator_gives_the_same_images_of_the_same_shape(kind):
    first = augment(IMAGES, kind, seeded_generator(1, 2))
    assert first.shape == IMAGES.shape
    assert torch.equal(first, augment(IMAGES, kind, seeded_generator(1, 2)))
    assert not torch.equal(first, augment(IMAGES, kind, seeded_generator(1, 3)))
    assert IMAGES.min() <= first.min() <= first.max() <= IMAGES.max()


def test_only_flips_swap_left_and_right():
    halves = torch.zeros(64, 3, 8, 8)
    halves[..., 4:] = 1
    for kind, some_flipped in (("crop", False), ("crop-flip", True)):
        result = augment(halves, kind, seeded_generator(0))
        flipped = result[..., :4].mean(dim=(1, 2, 3)) > result[..., 4:].mean(dim=(1, 2, 3))
        assert 16 < flipped.sum() < 48 if some_flipped else not flipped.any()


def test_a_crop_keeps_its_share_of_the_area_inside_the_image():
    ramp = torch.linspace(0, 1, 64).expand(256, 3, 64, 64)  # the value of a pixel is its column
    result = augment(ramp, "crop", seeded_generator(0))
    widths = (result.amax(dim=(1, 2, 3)) - result.amin(dim=(1, 2, 3))) * 64 / 63
    assert widths.max() <= 1.02
    assert (CROP_SCALE * 3 / 4) ** 0.5 - 0.03 < widths.min() < 0.75


def test_generators_differ_by_every_number():
    numbers = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    drawn = {torch.rand(1, generator=seeded_generator(*place)).item() for place in numbers}
    assert len(drawn) == len(numbers)
