"""LearnedCodec: images as entropy-coded latents of learned transforms."""

import binascii
import copy
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from ..base import Codec, CodecError, check_side
from .context import MEAN_STEPS, SCALES, Pass
from .entropy import UNDECODABLE, Contexts, Reader, Writer
from .networks import COARSEST_STEP, FINEST_STEP, FIT_LAYERS, LearnedNetworks
from .tone_curve import VALUES, fit_tone
from .training import CodecTraining
from .transforms import BLOCK, LATENT_MAX, LATENTS, STEP_INDICES, pad_to_blocks

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
_PIXELS_AT_ONCE = 2**20
_SAMPLE = 256  # images that tell the mean size of a code and the tone
_TONE = "tone.table"
_STEP, _GREY, _SQUARE = STEP_INDICES - 1, 1 << 6, 1 << 7  # of the first byte of a code
_CHECK = struct.Struct(">H")


class LearnedCodec(Codec):
    """Learned transforms and a learned entropy model; all sums are exact, so codes do not depend on the machine.

    A code is a byte for quantisation step, grey and square, the height, the width unless square, two check bytes and
    the payload of the range coder.

    Args:
        quality (`int`, defaults to 60): 0 (smallest) to 100 (best).
        weights (`str`, defaults to `"natural-1"`): Name of weights that ship with the package.
        state_dict (`dict[str, torch.Tensor]`, *optional*): What was fitted to a stream: tables and layers, the tone,
            or both.

    Raises:
        ValueError: If there are no such weights, or they are not whole.
    """

    name = "learned"

    def __init__(
        self, quality: int = 60, weights: str = "natural-1", state_dict: dict[str, torch.Tensor] | None = None
    ):
        if not isinstance(quality, int) or isinstance(quality, bool) or not 0 <= quality <= 100:
            raise ValueError(f"`quality` of the learned codec must be a whole number in 0..100, got {quality!r}.")
        self.quality, self.weights = quality, weights
        self.networks = LearnedNetworks()
        self.networks.unpack(_shipped(weights))
        trained = dict(state_dict or {})
        self._tone = _check_tone(trained.pop(_TONE)) if _TONE in trained else None  # uint8 (256,)
        self._layers = self.networks.fitted_by(trained) if trained else None  # which were fitted
        if self._layers is not None:
            self.networks.unpack(trained, self.networks.fitted(self._layers))
        self.networks.eval().requires_grad_(False)
        self._seed = _digest({**self.networks.pack(), **self._tone_dict()})

    def settings(self):
        return {"quality": self.quality, "weights": self.weights}

    def state_dict(self):
        fitted = {} if self._layers is None else self.networks.pack(self.networks.fitted(self._layers))
        return {**fitted, **self._tone_dict()}

    def _tone_dict(self) -> dict[str, torch.Tensor]:
        return {} if self._tone is None else {_TONE: self._tone}

    @property
    def num_bytes(self):
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def fit(
        self,
        images: Sequence[torch.Tensor],
        target_bytes: float | None = None,
        *,
        steps: int = 300,
        layers: str = "outer",
        seed: int = 0,
        shows_progress: bool = True,
    ) -> "LearnedCodec":
        """Return a codec fitted to images that look like nothing this one was trained on; this one stays as it is.

        Tables and layers are fitted, then the tone, a table of pixel values; they count in the memory's budget. Give
        the new codec to a new memory: the codes of the old one are not its own.

        Args:
            images (`Sequence[torch.Tensor]`): uint8 tensors of shape (3, H, W), a few hundred or more.
            target_bytes (`float`, *optional*): Mean size of a code; the quality is chosen for it. Else it stays.
            steps (`int`, defaults to 300): Optimizer steps; 0 fits the tone only, in 256 bytes and without delay.
            layers (`str`, defaults to `"outer"`): Which layers: `"outer"` takes 38 kB, `"context"` 151 kB, `"all"`
                761 kB. The more, the smaller the codes.
            seed (`int`, defaults to 0): Of everything random.
            shows_progress (`bool`, defaults to `True`): Whether to show progress bars.

        Raises:
            ValueError: If there are no images, no such layers, or no quality gives codes as small as `target_bytes`.
        """
        if len(images) == 0:
            raise ValueError("Expected images to fit the learned codec to, got none.")
        if layers not in FIT_LAYERS:
            raise ValueError(f"`layers` must be one of {list(FIT_LAYERS)}, got {layers!r}.")
        start = self if target_bytes is None else self._at_target(images, target_bytes, is_strict=steps == 0)
        if steps == 0:
            return start._with_tone(images)
        networks = LearnedCodec(start.quality, self.weights, self.state_dict()).networks
        indices = (max(start.step_index - 8, FINEST_STEP), min(start.step_index + 8, COARSEST_STEP))
        training = CodecTraining(
            networks, images, steps, learning_rate=2e-3, step_indices=indices, fit_layers=layers, seed=seed
        )
        for _ in tqdm(range(steps), desc="fitting the codec", disable=not shows_progress, leave=False):
            training.run(1)
        training.fit_tables(max(1, steps // 10), shows_progress)
        stored = max(layers, self._layers or layers, key=FIT_LAYERS.index)
        trained = LearnedCodec(start.quality, self.weights, networks.pack(networks.fitted(stored)))
        return (trained if target_bytes is None else trained._at_target(images, target_bytes))._with_tone(images)

    def _with_tone(self, images: Sequence[torch.Tensor]) -> "LearnedCodec":
        """Return this codec with a tone that is fitted to images."""
        sample, plain = _spread(images), copy.copy(self)
        plain._tone = None
        tone = fit_tone(plain.decode(plain.encode(sample)), sample)
        return LearnedCodec(self.quality, self.weights, {**plain.state_dict(), _TONE: tone})

    def _at_target(self, images, target_bytes: float, is_strict: bool = True) -> "LearnedCodec":
        """Return this codec at the best quality whose codes have at most this mean size, over a sample."""
        sample = _spread(images)
        low, high = 0, 100  # the quality is in low..high
        while low < high:
            middle = (low + high + 1) // 2
            size = np.mean([len(code) for code in self._at(middle).encode(sample)])
            low, high = (middle, high) if size <= target_bytes else (low, middle - 1)
        smallest = np.mean([len(code) for code in self._at(low).encode(sample)])
        if is_strict and smallest > target_bytes:
            raise ValueError(
                f"`target_bytes` must be at least {smallest:.0f} for these images, the mean size of a code at the "
                f"lowest quality, got {target_bytes}. Raise it, or scale the images down."
            )
        return self._at(low)

    def _at(self, quality: int) -> "LearnedCodec":
        other = copy.copy(self)
        other.quality = quality
        return other

    @property
    def step_index(self) -> int:
        """Index of the quantisation step."""
        return round(COARSEST_STEP - self.quality / 100 * (COARSEST_STEP - FINEST_STEP))

    def encode(self, images):
        codes: list[bytes] = [b""] * len(images)
        for rows in _alike([tuple(image.shape[1:]) for image in images]):
            batch = torch.stack([images[row] for row in rows]).cpu()
            for row, code in zip(rows, self._encode(batch), strict=True):
                codes[row] = code
        return codes

    def decode(self, codes):
        headers = [_Header.read(code, self._seed) for code in codes]
        images: list[torch.Tensor] = [torch.empty(0)] * len(codes)
        for rows in _alike([(header.height, header.width) for header in headers]):
            batch = self._decode([headers[row] for row in rows])
            for row, image in zip(rows, batch, strict=True):
                images[row] = image
        return images

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> list[bytes]:
        height, width = images.shape[2:]
        check_side(height, width)
        is_grey = ((images[:, 0] == images[:, 1]) & (images[:, 0] == images[:, 2])).flatten(1).all(dim=1)  # (B,)
        index = torch.full((len(images),), float(self.step_index))
        pixels = pad_to_blocks(images.float() - 128)
        wanted = self.networks.analysis(pixels, index).round().clamp(-LATENT_MAX, LATENT_MAX)  # (B, LATENTS, h, w)
        writer = Writer(len(images), self.networks.tables)

        def write(contexts: Contexts, one: Pass) -> np.ndarray:
            return writer.code(contexts, _whole(wanted[:, one.start : one.stop].flatten(2)[:, :, one.places]))

        self._walk(wanted.shape, index, write)
        return [
            _Header(height, width, self.step_index, bool(grey), payload).write(self._seed)
            for grey, payload in zip(is_grey, writer.finish(), strict=True)
        ]

    @torch.no_grad()
    def _decode(self, headers: "Sequence[_Header]") -> torch.Tensor:
        height, width = headers[0].height, headers[0].width
        index = torch.tensor([float(header.step_index) for header in headers])
        is_grey = torch.tensor([header.is_grey for header in headers])
        reader = Reader([header.payload for header in headers], self.networks.tables)
        shape = (len(headers), LATENTS, -(-height // BLOCK), -(-width // BLOCK))
        latents = self._walk(shape, index, lambda contexts, _: reader.code(contexts))
        image = self.networks.synthesis(latents, index)[:, :, :height, :width]
        if is_grey.any():
            image = torch.where(is_grey[:, None, None, None], image.mean(dim=1, keepdim=True), image)
        pixels = (image + 128).round_().clamp_(0, 255).to(torch.uint8)
        return pixels if self._tone is None else self._tone[pixels.long()]

    def _walk(self, shape: Sequence[int], index: torch.Tensor, code: Callable) -> torch.Tensor:
        """Call `code(contexts, pass)` for every pass; return all latents (B, LATENTS, h, w) that it returned."""
        latents = torch.zeros(tuple(shape)).contiguous(memory_format=torch.channels_last)
        limit = LATENT_MAX * MEAN_STEPS
        for one, means, scales in self.networks.context.walk(latents, index):
            contexts = Contexts(
                _whole((means * MEAN_STEPS).clamp_(-limit, limit)),
                _whole(scales.clamp(0, SCALES - 1)),
                self.networks.tables,
            )
            coded = code(contexts, one)
            if max(coded.max(), -coded.min()) > LATENT_MAX:
                raise CodecError(UNDECODABLE)
            coded = torch.from_numpy(coded).float().unflatten(1, (one.stop - one.start, -1))
            latents.flatten(2)[:, one.start : one.stop].index_copy_(2, one.places, coded)
        return latents


@dataclass(frozen=True)
class _Header:
    """What a code says: size and step of the image, and the bytes of the range coder."""

    height: int
    width: int
    step_index: int
    is_grey: bool
    payload: bytes

    def write(self, seed: int) -> bytes:
        """Return the code."""
        first = self.step_index | _GREY * self.is_grey | _SQUARE * (self.height == self.width)
        sides = (self.height,) if self.height == self.width else (self.height, self.width)
        head = bytes([first]) + b"".join(_write_number(side) for side in sides)
        return head + _CHECK.pack(binascii.crc_hqx(head + self.payload, seed)) + self.payload

    @classmethod
    def read(cls, code: bytes, seed: int) -> "_Header":
        """Read a code.

        Raises:
            CodecError: If it is not one of a codec with this seed.
        """
        height, start = _read_number(code, 1)
        width, start = (height, start) if code[:1] and code[0] & _SQUARE else _read_number(code, start)
        payload = code[start + _CHECK.size :]
        if code[start : start + _CHECK.size] != _CHECK.pack(binascii.crc_hqx(code[:start] + payload, seed)):
            raise CodecError(
                f"Expected a code of the learned codec with these weights, got {len(code)} bytes that fail its check. "
                "Are they corrupt, or was the codec another?"
            )
        check_side(height, width)
        return cls(height, width, code[0] & _STEP, bool(code[0] & _GREY), payload)


def _write_number(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([128 | number >> 7, number & 127])


def _read_number(code: bytes, start: int) -> tuple[int, int]:
    """Return the number that starts there, and where it ends."""
    first, second = code[start : start + 1], code[start + 1 : start + 2]
    if first >= b"\x80":
        return (first[0] & 127) << 7 | (second[0] if second else 0), start + 2
    return first[0] if first else 0, start + 1


def _alike(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the rows of equal sizes (height, width), in batches of limited pixels."""
    rows = defaultdict(list)
    for row, size in enumerate(sizes):
        rows[size].append(row)
    batches = []
    for (height, width), alike in rows.items():
        count = max(1, _PIXELS_AT_ONCE // (height * width))
        batches += [alike[start : start + count] for start in range(0, len(alike), count)]
    return batches


def _whole(values: torch.Tensor) -> np.ndarray:
    """Return rounded values (B, C, P) as int64 of shape (B, C * P)."""
    return values.round().flatten(1).numpy().astype(np.int64)


def _spread(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return about `_SAMPLE` images, spread over all."""
    return [images[row] for row in range(0, len(images), max(1, len(images) // _SAMPLE))]


def _check_tone(tone: torch.Tensor) -> torch.Tensor:
    """Return a tone that came from a file.

    Raises:
        ValueError: If it has another dtype or shape.
    """
    if tone.dtype != torch.uint8 or tone.shape != (VALUES,):
        raise ValueError(
            f"Expected {_TONE!r} of a learned codec as torch.uint8 of shape ({VALUES},), got {tone.dtype} of shape "
            f"{tuple(tone.shape)}."
        )
    return tone


def _digest(packed: dict[str, torch.Tensor]) -> int:
    """Return 16 bits that tell weights apart."""
    digest = 0
    for name in sorted(packed):
        digest = binascii.crc_hqx(packed[name].contiguous().numpy().tobytes(), digest)
    return digest


def _shipped(weights: str) -> dict[str, torch.Tensor]:
    names = sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))
    if weights not in names:
        raise ValueError(f"`weights` of the learned codec must be one of {names}, got {weights!r}.")
    return load_file(WEIGHTS_FOLDER / f"{weights}.safetensors")
