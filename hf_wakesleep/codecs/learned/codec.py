"""LearnedCodec: neural image compression, from images to entropy-coded latents of learned transforms and back."""

import binascii
import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from ..base import Codec, CodecError, check_side
from .context_model import MEAN_STEPS, NUM_SCALES, Pass
from .entropy import UNDECODABLE, Contexts, LatentDecoder, LatentEncoder
from .header import CodeHeader
from .networks import COARSEST_STEP, FINEST_STEP, FIT_LAYERS, LearnedNetworks
from .training import CodecTraining
from .transforms import BLOCK_SIZE, LATENT_MAX, NUM_LATENTS, NUM_PIXEL_VALUES, fit_pixel_table, pad_to_blocks

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
_MAX_BATCH_PIXELS = 2**20
_SAMPLE_SIZE = 256  # images that the mean size of a code and the pixel table are found with
_PIXEL_TABLE = "tone.table"  # its key in a file of weights


class LearnedCodec(Codec):
    """Learned transforms and a learned entropy model, in integer arithmetic, so codes do not depend on the machine.

    Args:
        quality (`int`, defaults to 60): 0 (smallest) to 100 (best).
        weights (`str`, defaults to `"natural-1"`): Name of weights that ship with the package.
        state_dict (`dict[str, torch.Tensor]`, *optional*): What was fitted to a stream: tables and layers, a lookup
            table of pixel values, or both.

    Raises:
        ValueError: If there are no such weights, or they are incomplete.
    """

    name = "learned"

    def __init__(
        self, quality: int = 60, weights: str = "natural-1", state_dict: dict[str, torch.Tensor] | None = None
    ):
        if not isinstance(quality, int) or isinstance(quality, bool) or not 0 <= quality <= 100:
            raise ValueError(f"`quality` of the learned codec must be an integer in 0..100, got {quality!r}.")
        self.quality, self.weights = quality, weights
        self.networks = LearnedNetworks()
        self.networks.unpack(_shipped_weights(weights))
        trained = dict(state_dict or {})
        table = trained.pop(_PIXEL_TABLE, None)
        self._pixel_table = None if table is None else _check_pixel_table(table)  # uint8 (256,)
        self._layers = self.networks.fitted_layers(trained) if trained else None  # the name of those that were fitted
        if self._layers is not None:
            self.networks.unpack(trained, self.networks.select_layers(self._layers))
        self.networks.eval().requires_grad_(False)
        self._seed = _checksum({**self.networks.pack(), **self._pixel_table_dict()})

    def settings(self):
        return {"quality": self.quality, "weights": self.weights}

    def state_dict(self):
        fitted = {} if self._layers is None else self.networks.pack(self.networks.select_layers(self._layers))
        return {**fitted, **self._pixel_table_dict()}

    def _pixel_table_dict(self) -> dict[str, torch.Tensor]:
        return {} if self._pixel_table is None else {_PIXEL_TABLE: self._pixel_table}

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
        """Return a codec fitted to images of a kind that this one was not trained on; this one stays as it is.

        Tables and layers are fitted, then a lookup table of pixel values; all count in the memory's budget. Give the
        new codec to a new memory: it cannot decode codes of the old codec.

        Args:
            images (`Sequence[torch.Tensor]`): uint8 tensors of shape (3, H, W), a few hundred or more.
            target_bytes (`float`, *optional*): Mean size of a code; the quality is chosen for it. Else it stays.
            steps (`int`, defaults to 300): Optimizer steps; 0 fits only the lookup table, in 256 bytes and at once.
            layers (`str`, defaults to `"outer"`): Which layers: `"outer"` takes 38 kB, `"context"` 151 kB, `"all"`
                761 kB. The more, the smaller the codes.
            seed (`int`, defaults to 0): Seed of all randomness.
            shows_progress (`bool`, defaults to `True`): Whether to show progress bars.

        Raises:
            ValueError: If there are no images, no such layers, or no quality gives codes as small as `target_bytes`.
        """
        if len(images) == 0:
            raise ValueError("Expected images to fit the learned codec to, got none.")
        if layers not in FIT_LAYERS:
            raise ValueError(f"`layers` must be one of {list(FIT_LAYERS)}, got {layers!r}.")
        start = self if target_bytes is None else self._with_code_size(images, target_bytes, is_strict=steps == 0)
        if steps == 0:
            return start._with_pixel_table(images)
        networks = LearnedCodec(start.quality, self.weights, self.state_dict()).networks
        indices = (max(start.step_index - 8, FINEST_STEP), min(start.step_index + 8, COARSEST_STEP))
        training = CodecTraining(
            networks, images, steps, learning_rate=2e-3, step_indices=indices, fit_layers=layers, seed=seed
        )
        for _ in tqdm(range(steps), desc="fitting the codec", disable=not shows_progress, leave=False):
            training.run(1)
        training.fit_tables(max(1, steps // 10), shows_progress)
        stored = max(layers, self._layers or layers, key=FIT_LAYERS.index)
        trained = LearnedCodec(start.quality, self.weights, networks.pack(networks.select_layers(stored)))
        if target_bytes is not None:
            trained = trained._with_code_size(images, target_bytes)
        return trained._with_pixel_table(images)

    def _with_pixel_table(self, images: Sequence[torch.Tensor]) -> "LearnedCodec":
        """Return this codec with a lookup table of pixel values that is fitted to images."""
        sample, plain = _sample_of(images), copy.copy(self)
        plain._pixel_table = None
        table = fit_pixel_table(plain.decode(plain.encode(sample)), sample)
        return LearnedCodec(self.quality, self.weights, {**plain.state_dict(), _PIXEL_TABLE: table})

    def _with_code_size(self, images, target_bytes: float, is_strict: bool = True) -> "LearnedCodec":
        """Return this codec at the best quality whose codes have at most this mean size, over a sample."""
        sample = _sample_of(images)
        low, high = 0, 100  # the quality is in low..high
        while low < high:
            middle = (low + high + 1) // 2
            size = np.mean([len(code) for code in self._with_quality(middle).encode(sample)])
            low, high = (middle, high) if size <= target_bytes else (low, middle - 1)
        smallest = np.mean([len(code) for code in self._with_quality(low).encode(sample)])
        if is_strict and smallest > target_bytes:
            raise ValueError(
                f"`target_bytes` must be at least {smallest:.0f} for these images, the mean size of a code at the "
                f"lowest quality, got {target_bytes}. Raise it, or scale the images down."
            )
        return self._with_quality(low)

    def _with_quality(self, quality: int) -> "LearnedCodec":
        other = copy.copy(self)
        other.quality = quality
        return other

    @property
    def step_index(self) -> int:
        """Index of the quantisation step."""
        return round(COARSEST_STEP - self.quality / 100 * (COARSEST_STEP - FINEST_STEP))

    def encode(self, images):
        codes: list[bytes] = [b""] * len(images)
        for rows in _equal_sized_batches([tuple(image.shape[1:]) for image in images]):
            batch = torch.stack([images[row] for row in rows]).cpu()
            for row, code in zip(rows, self._encode(batch), strict=True):
                codes[row] = code
        return codes

    def decode(self, codes):
        headers = [CodeHeader.read(code, self._seed) for code in codes]
        images: list[torch.Tensor] = [torch.empty(0)] * len(codes)
        for rows in _equal_sized_batches([(header.height, header.width) for header in headers]):
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
        wanted = self.networks.analysis(pixels, index).round().clamp(-LATENT_MAX, LATENT_MAX)  # (B, NUM_LATENTS, h, w)
        encoder = LatentEncoder(len(images), self.networks.tables)

        def encode_pass(contexts: Contexts, one: Pass) -> np.ndarray:
            return encoder.encode(contexts, _to_int64(wanted[:, one.start : one.stop].flatten(2)[:, :, one.positions]))

        self._code_passes(wanted.shape, index, encode_pass)
        return [
            CodeHeader(height, width, self.step_index, bool(grey), payload).write(self._seed)
            for grey, payload in zip(is_grey, encoder.finish(), strict=True)
        ]

    @torch.no_grad()
    def _decode(self, headers: "Sequence[CodeHeader]") -> torch.Tensor:
        height, width = headers[0].height, headers[0].width
        index = torch.tensor([float(header.step_index) for header in headers])
        is_grey = torch.tensor([header.is_grey for header in headers])
        decoder = LatentDecoder([header.payload for header in headers], self.networks.tables)
        shape = (len(headers), NUM_LATENTS, -(-height // BLOCK_SIZE), -(-width // BLOCK_SIZE))
        latents = self._code_passes(shape, index, lambda contexts, _: decoder.decode(contexts))
        image = self.networks.synthesis(latents, index)[:, :, :height, :width]
        if is_grey.any():
            image = torch.where(is_grey[:, None, None, None], image.mean(dim=1, keepdim=True), image)
        pixels = (image + 128).round_().clamp_(0, 255).to(torch.uint8)
        return pixels if self._pixel_table is None else self._pixel_table[pixels.long()]

    def _code_passes(self, shape: Sequence[int], index: torch.Tensor, code: Callable) -> torch.Tensor:
        """Call `code(contexts, pass)` for every pass; return all latents (B, NUM_LATENTS, h, w) that it returned."""
        latents = torch.zeros(tuple(shape)).contiguous(memory_format=torch.channels_last)
        limit = LATENT_MAX * MEAN_STEPS
        for one, means, scales in self.networks.context.predict_passes(latents, index):
            contexts = Contexts(
                _to_int64((means * MEAN_STEPS).clamp_(-limit, limit)),
                _to_int64(scales.clamp(0, NUM_SCALES - 1)),
                self.networks.tables,
            )
            coded = code(contexts, one)
            if max(coded.max(), -coded.min()) > LATENT_MAX:
                raise CodecError(UNDECODABLE)
            coded = torch.from_numpy(coded).float().unflatten(1, (one.stop - one.start, -1))
            latents.flatten(2)[:, one.start : one.stop].index_copy_(2, one.positions, coded)
        return latents


def _equal_sized_batches(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the rows of equal sizes (height, width), in batches of limited pixels."""
    rows = defaultdict(list)
    for row, size in enumerate(sizes):
        rows[size].append(row)
    batches = []
    for (height, width), alike in rows.items():
        count = max(1, _MAX_BATCH_PIXELS // (height * width))
        batches += [alike[start : start + count] for start in range(0, len(alike), count)]
    return batches


def _to_int64(values: torch.Tensor) -> np.ndarray:
    """Return rounded values (B, C, P) as int64 of shape (B, C * P)."""
    return values.round().flatten(1).numpy().astype(np.int64)


def _sample_of(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return about `_SAMPLE_SIZE` images at equal distances."""
    return [images[row] for row in range(0, len(images), max(1, len(images) // _SAMPLE_SIZE))]


def _check_pixel_table(table: torch.Tensor) -> torch.Tensor:
    """Return a lookup table of pixel values that came from a file.

    Raises:
        ValueError: If it has another dtype or shape.
    """
    if table.dtype != torch.uint8 or table.shape != (NUM_PIXEL_VALUES,):
        raise ValueError(
            f"Expected {_PIXEL_TABLE!r} of a learned codec as torch.uint8 of shape ({NUM_PIXEL_VALUES},), got "
            f"{table.dtype} of shape {tuple(table.shape)}."
        )
    return table


def _checksum(packed: dict[str, torch.Tensor]) -> int:
    """Return a checksum of weights, 16 bits."""
    digest = 0
    for name in sorted(packed):
        digest = binascii.crc_hqx(packed[name].contiguous().numpy().tobytes(), digest)
    return digest


def _shipped_weights(weights: str) -> dict[str, torch.Tensor]:
    names = sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))
    if weights not in names:
        raise ValueError(f"`weights` of the learned codec must be one of {names}, got {weights!r}.")
    return load_file(WEIGHTS_FOLDER / f"{weights}.safetensors")
