"""Codec: the interface of all codecs, from an image to `bytes` and back, with those for raw pixels and WebP."""

import binascii
import hashlib
import io
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

MAX_SIDE = 4096  # pixels; a code that claims a larger image is refused before anything is allocated
_CHECK = struct.Struct(">H")


class CodecError(ValueError):
    """A code that cannot be decoded: corrupt, truncated, foreign or oversized."""


class Codec(ABC):
    """Interface of all codecs. An image is a uint8 tensor of shape (3, H, W), a code is a self-contained `bytes`."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, images: Sequence[torch.Tensor]) -> list[bytes]:
        """Return one code per image; `images` is a list of (3, H, W) uint8 tensors or one (B, 3, H, W) tensor."""

    @abstractmethod
    def decode(self, codes: Sequence[bytes]) -> list[torch.Tensor]:
        """Return one (3, H, W) uint8 tensor per code.

        Raises:
            CodecError: If a code cannot be decoded.
        """

    def settings(self) -> dict:
        """Return the JSON-able arguments that `make_codec` needs to build this codec again."""
        return {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights; empty for codecs that have none."""
        return {}

    def digest(self) -> str | None:
        """Return a checksum of the weights that were fitted to the stream; `None` without such."""
        weights = self.state_dict()
        if not weights:
            return None
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that were fitted to the stream; they count in the memory budget."""
        return 0


def check_side(height: int, width: int) -> None:
    """Refuse an image of this size.

    Raises:
        CodecError: If a side is not in 1..MAX_SIDE.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise CodecError(f"Expected a code of an image of 1 to {MAX_SIDE} pixels a side, got {height} x {width}.")


def add_checksum(content: bytes) -> bytes:
    """Return a code: some content and two bytes of checksum."""
    return content + _CHECK.pack(binascii.crc_hqx(content, 0xFFFF))


def strip_checksum(code: bytes) -> bytes:
    """Return the content of a code.

    Raises:
        CodecError: If its checksum is wrong.
    """
    content = code[: -_CHECK.size]
    if code != add_checksum(content):
        raise CodecError(
            f"Expected a code that ends with a check of its content, got {len(code)} bytes that fail it. Are they "
            "corrupt, or of another codec?"
        )
    return content


class _ChecksummedCodec(Codec):
    """A codec that encodes images one by one and adds a checksum to each code."""

    def encode(self, images):
        return [add_checksum(self._encode_one(image)) for image in images]

    def decode(self, codes):
        return [self._decode_one(strip_checksum(code)) for code in codes]

    @abstractmethod
    def _encode_one(self, image: torch.Tensor) -> bytes: ...

    @abstractmethod
    def _decode_one(self, content: bytes) -> torch.Tensor: ...


class RawCodec(_ChecksummedCodec):
    """Uncompressed pixels after a header of 5 bytes and before 2 of checksum; grey images as one channel."""

    name = "raw"
    _header = struct.Struct("<BHH")  # channels, height, width

    def _encode_one(self, image):
        is_grey = bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
        pixels = (image[:1] if is_grey else image).contiguous()
        return self._header.pack(*pixels.shape) + pixels.cpu().numpy().tobytes()

    def _decode_one(self, content):
        if len(content) < self._header.size:
            raise CodecError(f"Expected a raw code with a header of {self._header.size} bytes, got {len(content)}.")
        channels, height, width = self._header.unpack_from(content)
        check_side(height, width)
        size, found = channels * height * width, len(content) - self._header.size
        if channels not in (1, 3) or found != size:
            raise CodecError(
                f"Expected a raw code of {size} bytes for {channels} channels of {height} x {width}, got {found}."
            )
        pixels = np.frombuffer(content, dtype=np.uint8, offset=self._header.size).reshape(channels, height, width)
        return torch.from_numpy(pixels.copy()).expand(3, -1, -1)  # (3, H, W)


class WebPCodec(_ChecksummedCodec):
    """Lossy WebP, as Pillow writes it, and a checksum of 2 bytes, which readers may ignore (RFC 9649, section 2.4).

    Args:
        quality (`int`, defaults to 50): 0 (smallest) to 100 (best).
    """

    name = "webp"

    def __init__(self, quality: int = 50):
        if not isinstance(quality, int) or isinstance(quality, bool) or not 0 <= quality <= 100:
            raise ValueError(f"`quality` of WebP must be an integer in 0..100, got {quality!r}.")
        self.quality = quality

    def settings(self):
        return {"quality": self.quality}

    def _encode_one(self, image):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "WEBP", quality=self.quality, method=6)
        return buffer.getvalue()

    def _decode_one(self, content):
        check_side(*_webp_size(content))
        try:
            with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise CodecError(f"Expected a WebP code, got {len(content)} bytes that do not decode: {error}.") from error
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)  # (3, H, W)


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return height and width as the header says, of nothing but one lossy frame (RFC 9649, section 2.5)."""
    if len(content) < 30 or (content[:4], content[8:16], content[23:26]) != (b"RIFF", b"WEBPVP8 ", b"\x9d\x01\x2a"):
        raise CodecError(f"Expected a WebP code, one lossy frame without extras, got {len(content)} other bytes.")
    width, height = struct.unpack_from("<HH", content, 26)
    return height & 0x3FFF, width & 0x3FFF  # the upper bits say how to scale it up
