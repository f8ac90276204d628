"""LearnedNetworks: small to store, and strict about what they are loaded from."""

import pytest
import torch

from hf_wakesleep import LearnedNetworks
from hf_wakesleep.codecs.learned.networks import FIT_LAYERS


def test_packed_networks_hold_a_byte_for_a_weight_and_come_back_equal():
    networks = LearnedNetworks()
    packed = networks.pack()
    assert sum(tensor.nbytes for tensor in packed.values()) < 1_000_000
    other = LearnedNetworks()
    other.unpack(packed)
    assert all(torch.equal(packed[name], tensor) for name, tensor in other.pack().items())


def test_what_is_fitted_is_known_by_its_layers_and_the_more_the_larger():
    networks, sizes = LearnedNetworks(), []
    for layers in FIT_LAYERS:
        packed = networks.pack(networks.select_layers(layers))
        assert networks.fitted_layers(packed) == layers
        sizes.append(sum(tensor.nbytes for tensor in packed.values()))
    assert [round(size / 1000) for size in sizes] == [38, 151, 761]


def test_missing_and_unknown_weights_are_refused():
    networks = LearnedNetworks()
    packed = networks.pack()
    with pytest.raises(ValueError, match="unknown names"):
        networks.unpack({**packed, "classifier.weight": torch.zeros(1)})
    del packed["analysis.linear.weight"]
    with pytest.raises(ValueError, match="Expected `weight`"):
        networks.unpack(packed)
