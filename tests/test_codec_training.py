"""CodecTraining: the loss goes down, tables follow, and a run that was stopped ends the same."""

import io

import torch
from sklearn.datasets import load_sample_images

from hf_wakesleep import CodecTraining, LearnedNetworks
from hf_wakesleep.codec_training import random_crops


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


def test_fitting_changes_outer_layers_and_tables_only():
    training = make_training(steps=2, is_general=False)
    before = training.networks.pack()
    training.run(2)
    training.fit_tables(batches=1)
    changed = {name for name, tensor in training.networks.pack().items() if not torch.equal(tensor, before[name])}
    outer = set(training.networks.pack(training.networks.outer()))
    assert changed
    assert changed <= outer


def test_crops_are_whole_blocks_even_of_tiny_images():
    generator = torch.Generator().manual_seed(0)
    for is_rescaled in (True, False):
        crops = random_crops([torch.zeros(3, 11, 28, dtype=torch.uint8)], 3, generator, is_rescaled)
        assert crops.dtype == torch.uint8
        assert crops.shape[2] % 8 == crops.shape[3] % 8 == 0
