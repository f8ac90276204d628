"""LearnedNetworks: small to store, and strict about what they are loaded from."""

import pytest
import torch

from hf_wakesleep import LearnedNetworks


def test_packed_networks_hold_a_byte_for_a_weight_and_come_back_equal():
    networks = LearnedNetworks()
    packed = networks.pack()
    assert sum(tensor.nbytes for tensor in packed.values()) < 1_000_000
    other = LearnedNetworks()
    other.unpack(packed)
    assert all(torch.equal(packed[name], tensor) for name, tensor in other.pack().items())


def test_outer_layers_are_a_small_part():
    networks = LearnedNetworks()
    outer = networks.pack(networks.outer())
    assert set(outer) < set(networks.pack())
    assert sum(tensor.nbytes for tensor in outer.values()) < 40_000


def test_missing_and_unknown_weights_are_refused():
    networks = LearnedNetworks()
    packed = networks.pack()
    with pytest.raises(ValueError, match="unknown names"):
        networks.unpack({**packed, "classifier.weight": torch.zeros(1)})
    del packed["analysis.linear.weight"]
    with pytest.raises(ValueError, match="Expected `weight`"):
        networks.unpack(packed)
