"""Coding of latents: lossless, close to the entropy, and an error for bytes that were not written so."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_wakesleep.codecs.learned.context_model import MEAN_STEPS, NUM_SCALES
from hf_wakesleep.codecs.learned.entropy import PROBABILITY_STEPS, BinaryTables, Contexts, LatentDecoder, LatentEncoder

TABLES = BinaryTables.from_logistic()


def random_contexts(generator, shape, scales=(0, NUM_SCALES)):
    return Contexts(
        generator.integers(-5 * MEAN_STEPS, 5 * MEAN_STEPS, shape), generator.integers(*scales, shape), TABLES
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 60), st.integers(1, 4), st.integers(0, 40))
def test_what_is_written_is_read(seed, images, latents, rounds, spread):
    generator = np.random.default_rng(seed)
    contexts = [random_contexts(generator, (images, latents)) for _ in range(rounds)]
    wanted = [generator.integers(-spread, spread + 1, (images, latents)) for _ in range(rounds)]
    writer = LatentEncoder(images, TABLES)
    written = [writer.encode(context, latent) for context, latent in zip(contexts, wanted, strict=True)]
    for context, latent, got in zip(contexts, wanted, written, strict=True):
        assert np.array_equal(got[context.is_coded], latent[context.is_coded])
        assert np.array_equal(got[~context.is_coded], context.nearest[~context.is_coded])
    reader = LatentDecoder(writer.finish(), TABLES)
    for context, got in zip(contexts, written, strict=True):
        assert np.array_equal(reader.decode(context), got)


def test_sizes_are_close_to_the_entropy():
    generator = np.random.default_rng(0)
    contexts = random_contexts(generator, (1, 20_000), scales=(4, 20))
    width = np.exp(np.log(0.06) + 0.2 * contexts.scales)
    mean = contexts.nearest + contexts.side * contexts.offsets / MEAN_STEPS
    latents = np.rint(generator.logistic(mean, width)).astype(np.int64)
    below, above = (1 / (1 + np.exp(-(latents - mean + half) / width)) for half in (-0.5, 0.5))
    entropy = -np.log2(np.maximum(above - below, 1e-12)).sum() / 8
    writer = LatentEncoder(1, TABLES)
    writer.encode(contexts, latents)
    (payload,) = writer.finish()
    assert 0.99 * entropy < len(payload) < 1.01 * entropy


def test_no_byte_is_spent_on_what_is_sure():
    contexts = Contexts(np.zeros((1, 500), dtype=np.int64), np.zeros((1, 500), dtype=np.int64), TABLES)
    writer = LatentEncoder(1, TABLES)
    writer.encode(contexts, np.zeros((1, 500), dtype=np.int64))
    assert writer.finish() == [b""]


def test_tables_follow_what_was_counted_and_survive_packing():
    counts = {name: (np.full(t.shape, 10**6), np.full(t.shape, 10**5)) for name, t in vars(TABLES).items()}
    tables = BinaryTables.from_counts(counts)
    assert np.allclose(tables.differs / PROBABILITY_STEPS, 0.1, atol=0.001)
    again = BinaryTables.unpack(tables.pack())
    assert all(np.array_equal(table, getattr(again, name)) for name, table in vars(tables).items())


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.full((NUM_SCALES, 9), PROBABILITY_STEPS, dtype=torch.int32)])
def test_tables_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="Expected a table `differs`"):
        BinaryTables.unpack({**TABLES.pack(), "differs": wrong})
