"""The lookup table of pixel values: mean original values of decoded ones."""

import torch

from hf_wakesleep.codecs.learned.transforms import fit_pixel_table


def image(*values):
    return torch.tensor(values, dtype=torch.uint8).expand(3, 1, -1)


def test_values_move_to_the_mean_of_what_they_were():
    many = 1000
    decoded, original = [image(20, 20, 200)] * many, [image(0, 10, 255)] * many
    table = fit_pixel_table(decoded, original)
    assert table.dtype == torch.uint8
    assert table[20] == 5
    assert table[200] == 255


def test_values_that_were_never_decoded_stay():
    table = fit_pixel_table([image(7)], [image(255)])
    untouched = [value for value in range(256) if value != 7]
    assert table[untouched].tolist() == untouched
    assert 7 < table[7] < 255 / 2  # one pixel weighs less than the prior
