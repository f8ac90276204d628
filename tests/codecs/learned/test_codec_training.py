"""CodecTraining: the loss goes down, tables follow, and a run that was stopped ends the same."""

import io

import pytest
import torch
from sklearn.datasets import load_sample_images

from hf_wakesleep import CodecTraining, LearnedNetworks
from hf_wakesleep.codecs.learned.networks import FIT_LAYERS
from hf_wakesleep.codecs.learned.training import random_crops
from hf_wakesleep.codecs.learned.transforms import pad_to_blocks

pytestmark = pytest.mark.slow


def photographs():
    return [torch.tensor(image).permute(2, 0, 1)[:, :200, :320] for image in load_sample_images().images]


def make_training(steps=30, **kwargs):
    torch.manual_seed(0)
    return CodecTraining(LearnedNetworks(), photographs(), steps, batch_size=4, **kwargs)


def test_training_lowers_the_loss():
    training = make_training(steps=150)
    first, _, last = (training.run(steps)[0] for steps in (10, 120, 20))
    assert last < 0.8 * first


def test_a_run_that_was_stopped_ends_the_same():
    whole = make_training(steps=6)
    whole.run(6)
    first = make_training(steps=6)
    first.run(3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make_training(steps=6)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.run(3)
    for name, tensor in whole.networks.pack().items():
        assert torch.equal(tensor, second.networks.pack()[name]), name


@pytest.mark.parametrize("layers", FIT_LAYERS)
def test_fitting_changes_its_layers_and_tables_only(layers):
    training = make_training(steps=2, fit_layers=layers)
    before = training.networks.pack()
    training.run(2)
    training.fit_tables(batches=1)
    changed = {name for name, tensor in training.networks.pack().items() if not torch.equal(tensor, before[name])}
    fitted = {name.rpartition(".")[0] for name in training.networks.pack(training.networks.select_layers(layers))}
    assert {name.rpartition(".")[0] for name in changed} >= {"tables", "analysis.linear", "context.nets.0.2"}
    assert {name.rpartition(".")[0] for name in changed} <= fitted


def test_what_is_made_of_padding_is_free():
    image = torch.randint(0, 256, (2, 3, 12, 20)).float() - 128
    training, index = make_training(steps=1), torch.tensor([20.0, 30.0])
    _, error = training._rate_and_error(image, index)
    whole = training.networks.synthesis(training.networks.analysis(pad_to_blocks(image), index).round(), index)
    assert whole.shape[2:] == (16, 24)
    expected = ((whole[:, :, :12, :20] - image) ** 2).sum(dim=(1, 2, 3))
    torch.testing.assert_close(error, expected)


def test_crops_are_square_even_of_tiny_images():
    generator = torch.Generator().manual_seed(0)
    crops = random_crops([torch.zeros(3, 11, 28, dtype=torch.uint8)], 3, generator, is_rescaled=False)
    assert crops.dtype == torch.uint8
    assert crops.shape == (3, 3, 11, 11)
