"""IntegerConv2d: sums without rounding error, and weights that are stored as they are used."""

import pytest
import torch

from hf_wakesleep.codecs.learned.integer_conv import ACTIVATION_MAX, ACTIVATION_STEPS, IntegerConv2d, rounded_relu


def make_conv(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    conv = IntegerConv2d(*args, **kwargs).eval()
    conv.unpack(conv.pack())
    return conv


def random_activations(*shape, seed=1):
    steps = int(ACTIVATION_MAX * ACTIVATION_STEPS)
    return torch.randint(0, steps + 1, shape, generator=torch.Generator().manual_seed(seed)) / ACTIVATION_STEPS


@pytest.mark.parametrize(("channels", "kernel"), [(96, 3), (192, 1), (8, 3)])
@torch.no_grad()
def test_a_convolution_is_that_of_whole_numbers(channels, kernel):
    conv = make_conv(channels, 16, kernel)
    x = random_activations(2, channels, 6, 5)
    packed = conv.pack()
    exact = torch.nn.functional.conv2d(
        (x * ACTIVATION_STEPS).to(torch.int64).double(), packed["weight"].double(), padding=kernel // 2
    )
    unit = torch.exp2(packed["exponent"].double())[:, None, None] / ACTIVATION_STEPS
    assert torch.equal(conv(x), (exact * unit + packed["bias"].double()[:, None, None] / 256).float())


@torch.no_grad()
def test_a_result_depends_on_neither_batch_size_nor_order_of_channels():
    conv = make_conv(96, 32, 3)
    x = random_activations(7, 96, 5, 5)
    whole = conv(x)
    assert all(torch.equal(conv(x[row : row + 1])[0], whole[row]) for row in range(7))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    conv.weight.copy_(conv.weight[:, order])
    assert torch.equal(conv(x[:, order]), whole)


@pytest.mark.parametrize("largest", [1.0, 4096.0])
@torch.no_grad()
def test_sums_are_exact_where_float32_could_not_hold_them(largest):
    conv = make_conv(64, 4, input_max=4096.0, input_steps=256)
    assert 1.0 < conv.float32_max < 4096.0
    x = torch.randint(-256, 257, (3, 64, 5, 5), generator=torch.Generator().manual_seed(1)) / 256
    x[0] *= largest
    weight, bias = conv.weight.double(), conv.bias.double()
    assert torch.equal(conv(x), torch.nn.functional.conv2d(x.double(), weight, bias).float())


@torch.no_grad()
def test_what_channels_add_is_the_whole():
    conv = make_conv(8, 4, 3)
    x = random_activations(2, 8, 5, 5)
    odd = conv.forward_channels(x[:, 1::2], slice(1, None, 2))
    even = conv.forward_channels(x[:, ::2], [0, 2, 4, 6], False)
    assert torch.equal(odd + even, conv(x))


def test_packing_is_small_and_changes_nothing_the_second_time():
    conv = make_conv(8, 4, 3)
    packed = conv.pack()
    assert {name: tensor.dtype for name, tensor in packed.items()} == {
        "weight": torch.int8,
        "exponent": torch.int8,
        "bias": torch.int32,
    }
    other = IntegerConv2d(8, 4, 3)
    other.unpack(packed)
    assert all(torch.equal(packed[name], tensor) for name, tensor in other.pack().items())


def test_training_with_rounded_weights_gives_what_evaluation_gives():
    conv = IntegerConv2d(8, 4, 3).train()
    x = random_activations(2, 8, 5, 5)
    trained = conv(x)
    trained.sum().backward()
    assert conv.weight.grad.abs().sum() > 0
    conv.eval().unpack(conv.pack())
    assert torch.allclose(conv(x), trained, atol=1e-4)


def test_activations_are_clipped_multiples_and_let_gradients_through():
    x = torch.tensor([-1.0, 0.51, 99.0], requires_grad=True)
    y = rounded_relu(x)
    assert y.tolist() == [0.0, 0.5, ACTIVATION_MAX]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["weight", "exponent", "bias"])
def test_weights_of_another_shape_or_dtype_are_refused(name):
    conv = IntegerConv2d(8, 4)
    packed = conv.pack()
    for wrong in (packed[name].float(), packed[name][:1], None):
        with pytest.raises(ValueError, match=f"Expected `{name}`"):
            conv.unpack({**packed, name: wrong})
