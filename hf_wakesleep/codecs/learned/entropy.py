"""Entropy coding: quantised latents as binary decisions with tabulated probabilities, to bytes and back.

A latent is coded as its distance from the integer nearest to its mean: is it zero; is it on the side of the mean; is
its magnitude above 1, above 2, ... The range coder is `constriction`'s (Bamler 2022).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import constriction
import numpy as np
import torch

from ..base import CodecError
from .context_model import LOG_SCALE_MIN, LOG_SCALE_STEP, MEAN_STEPS, NUM_SCALES

NUM_OFFSETS = MEAN_STEPS // 2 + 1  # distances of a mean from the nearest integer: 0 to 1/2
NUM_LEVELS = 8  # magnitudes above the last level share its probability
MIN_CODED = 64  # rarer differences from the nearest integer are not coded, in units of 1 / PROBABILITY_STEPS
PROBABILITY_STEPS = 2**16  # probabilities are stored in units of 1 / PROBABILITY_STEPS
UNDECODABLE = "Expected a code of the learned codec, got bytes that do not decode."
_MAGNITUDE_MAX = 1024
_BERNOULLI = constriction.stream.model.Bernoulli(perfect=False)
_PRIOR_WEIGHT = 32.0


class BinaryTables:
    """Probabilities of binary decisions in units of 1 / PROBABILITY_STEPS, by scale and by offset of the mean.

    Args:
        differs (`np.ndarray` of shape `(NUM_SCALES, NUM_OFFSETS)`): That a latent is not the nearest integer.
        agrees (`np.ndarray` of shape `(NUM_SCALES, NUM_OFFSETS)`): That it then lies on the side of the mean.
        exceeds (`np.ndarray` of shape `(NUM_SCALES, NUM_LEVELS)`): That its distance exceeds 1, 2, ... if so far.
    """

    def __init__(self, differs: np.ndarray, agrees: np.ndarray, exceeds: np.ndarray):
        self.differs, self.agrees, self.exceeds = differs, agrees, exceeds

    @classmethod
    def from_logistic(cls) -> "BinaryTables":
        """Return the tables of logistic distributions."""
        width = np.exp(LOG_SCALE_MIN + LOG_SCALE_STEP * np.arange(NUM_SCALES))[:, None]  # (NUM_SCALES, 1)
        offset = np.arange(NUM_OFFSETS)[None] / MEAN_STEPS  # (1, NUM_OFFSETS)
        above, below = _sigmoid((offset - 0.5) / width), _sigmoid((-offset - 0.5) / width)
        level = np.arange(1, NUM_LEVELS + 1)[None]  # (1, NUM_LEVELS)
        exceeds = _sigmoid((-level - 0.5) / width) / _sigmoid((-level + 0.5) / width)
        return cls(*(_to_table(p) for p in (above + below, above / (above + below), exceeds)))

    @classmethod
    def from_counts(cls, counts: dict[str, tuple[np.ndarray, np.ndarray]]) -> "BinaryTables":
        """Return tables from counts: how often each decision was taken, and how often it came out true."""
        prior = cls.from_logistic()
        tables = {}
        for name, (taken, true) in counts.items():
            expected = getattr(prior, name) / PROBABILITY_STEPS
            tables[name] = _to_table((true + _PRIOR_WEIGHT * expected) / (taken + _PRIOR_WEIGHT))
        return cls(**tables)

    @classmethod
    def unpack(cls, packed: dict[str, torch.Tensor]) -> "BinaryTables":
        """Return the tables that `pack` returned.

        Raises:
            ValueError: If they are not such tables.
        """
        tables = {}
        for name, own in cls.from_logistic().pack().items():
            got = packed.get(name)
            if got is None or got.dtype != own.dtype or got.shape != own.shape or not _is_table(got):
                raise ValueError(
                    f"Expected a table `{name}` of {own.dtype} and shape {tuple(own.shape)} in "
                    f"(0, {PROBABILITY_STEPS})."
                )
            tables[name] = got.numpy()
        return cls(**tables)

    def probabilities(self) -> "BinaryTables":
        """Return the same tables as float64 in (0, 1)."""
        return BinaryTables(*(table / PROBABILITY_STEPS for table in (self.differs, self.agrees, self.exceeds)))

    def pack(self) -> dict[str, torch.Tensor]:
        """Return the tables as int32 tensors."""
        return {name: torch.from_numpy(table) for name, table in vars(self).items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _to_table(probability: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(probability * PROBABILITY_STEPS), 1, PROBABILITY_STEPS - 1).astype(np.int32)


def _is_table(table: torch.Tensor) -> bool:
    return bool(((table > 0) & (table < PROBABILITY_STEPS)).all())


class Contexts:
    """The entries of the tables that give the probabilities of some latents.

    Args:
        means (`np.ndarray`): Means in steps of 1 / MEAN_STEPS, int64 of shape (B, N).
        scales (`np.ndarray`): Scale steps, int64 of shape (B, N).
        tables ([`BinaryTables`]): The tables.
    """

    def __init__(self, means: np.ndarray, scales: np.ndarray, tables: BinaryTables):
        self.nearest = (means + MEAN_STEPS // 2) // MEAN_STEPS  # (B, N)
        offset = means - self.nearest * MEAN_STEPS  # (B, N) in -MEAN_STEPS / 2 .. MEAN_STEPS / 2 - 1
        self.side = np.where(offset < 0, -1, 1)
        self.scales, self.offsets = scales, np.abs(offset)
        self.table_indices = scales * NUM_OFFSETS + self.offsets  # (B, N) in a table of scales and offsets
        self.is_coded = (tables.differs >= MIN_CODED).take(self.table_indices)  # (B, N)

    def decisions(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for latents (B, N) whether they differ, whether they agree, and their distance."""
        distance = latents - self.nearest
        return distance != 0, distance * self.side > 0, np.abs(distance)


class LatentEncoder:
    """Encodes the latents of several images, pass by pass, into separate bytes for each image.

    Args:
        size (`int`): Number B of images.
        tables ([`BinaryTables`]): Probabilities.
    """

    def __init__(self, size: int, tables: BinaryTables):
        self._probabilities = tables.probabilities()
        self._encoders = [constriction.stream.queue.RangeEncoder() for _ in range(size)]

    def encode(self, contexts: Contexts, latents: np.ndarray) -> np.ndarray:
        """Encode latents (B, N) and return them as they will be decoded: where none is coded, the nearest integer."""
        latents = np.where(contexts.is_coded, latents, contexts.nearest)
        differs, agrees, distance = (values.ravel() for values in contexts.decisions(latents))
        active, scales = np.flatnonzero(contexts.is_coded), contexts.scales.ravel()
        probabilities, width = self._probabilities, latents.shape[1]
        self._encode(active, width, differs, probabilities.differs.take(contexts.table_indices.ravel()[active]))
        active, level = active[differs[active]], 1
        self._encode(active, width, agrees, probabilities.agrees.take(contexts.table_indices.ravel()[active]))
        while len(active):
            exceeds = distance > level
            self._encode(active, width, exceeds, probabilities.exceeds[scales[active], min(level, NUM_LEVELS) - 1])
            active, level = active[exceeds[active]], level + 1
        return latents

    def finish(self) -> list[bytes]:
        """Return the bytes of every image."""
        return [_shortest_bytes(encoder) for encoder in self._encoders]

    def _encode(self, active: np.ndarray, width: int, outcomes: np.ndarray, probabilities: np.ndarray) -> None:
        symbols = outcomes[active].astype(np.int32)
        for row, part in _split_rows(active, width, len(self._encoders)):
            self._encoders[row].encode(symbols[part], _BERNOULLI, probabilities[part])


class LatentDecoder:
    """Decodes the bytes of [`LatentEncoder`], pass by pass.

    Args:
        payloads (`Sequence[bytes]`): One for each of B images.
        tables ([`BinaryTables`]): Probabilities.
    """

    def __init__(self, payloads: Sequence[bytes], tables: BinaryTables):
        self._probabilities = tables.probabilities()
        words = [np.frombuffer(payload + bytes(-len(payload) % 4), dtype=">u4") for payload in payloads]
        self._decoders = [constriction.stream.queue.RangeDecoder(word.astype(np.uint32)) for word in words]

    def decode(self, contexts: Contexts) -> np.ndarray:
        """Return the latents (B, N) of the next pass.

        Raises:
            CodecError: If a payload was not written by [`LatentEncoder`].
        """
        active, scales = np.flatnonzero(contexts.is_coded), contexts.scales.ravel()
        probabilities, width = self._probabilities, contexts.nearest.shape[1]
        differs = self._decode(active, width, probabilities.differs.take(contexts.table_indices.ravel()[active]))
        different = active = active[differs]
        agrees = self._decode(active, width, probabilities.agrees.take(contexts.table_indices.ravel()[active]))
        distance, level = np.zeros(contexts.nearest.size, dtype=np.int64), 1
        while len(active):
            distance[active] = level
            exceeds = self._decode(active, width, probabilities.exceeds[scales[active], min(level, NUM_LEVELS) - 1])
            active, level = active[exceeds], level + 1
            if level > _MAGNITUDE_MAX:
                raise CodecError(UNDECODABLE)
        side = contexts.side.ravel()[different]
        latents = contexts.nearest.flatten()
        latents[different] += distance[different] * np.where(agrees, side, -side)
        return latents.reshape(contexts.nearest.shape)

    def _decode(self, active: np.ndarray, width: int, probabilities: np.ndarray) -> np.ndarray:
        outcomes = np.zeros(len(active), dtype=bool)
        for row, part in _split_rows(active, width, len(self._decoders)):
            try:
                outcomes[part] = self._decoders[row].decode(_BERNOULLI, probabilities[part])
            except AssertionError as error:  # of constriction, for bytes that no encoder gives
                raise CodecError(UNDECODABLE) from error
        return outcomes


def _split_rows(positions: np.ndarray, width: int, count: int) -> Iterator[tuple[int, slice]]:
    """Yield every row of (count, width) that has some of the sorted positions, and where these stand among them."""
    ends = np.searchsorted(positions, np.arange(count + 1) * width).tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        if start < end:
            yield row, slice(start, end)


def _shortest_bytes(encoder) -> bytes:
    """Return the shortest bytes that decode, padded with zeros, to what the encoder holds.

    Any point of the encoder's interval will do; this takes the one with the fewest bytes.
    """
    words = encoder.get_compressed()
    count, (lower, width) = encoder.pos()
    payload = words.astype(">u4").tobytes()
    prefix, tail = payload[: 4 * count], int.from_bytes(payload[4 * count :].ljust(8, b"\0"), "big")
    if not lower <= tail < lower + width:  # a carry may still reach the prefix
        return payload.rstrip(b"\0")
    for size in range(9):
        unit = 1 << (64 - 8 * size)
        point = -(-lower // unit) * unit
        if point < min(lower + width, 1 << 64):
            return (prefix + point.to_bytes(8, "big")[:size]).rstrip(b"\0")
    return payload.rstrip(b"\0")
