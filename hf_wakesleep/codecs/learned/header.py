"""CodeHeader: the first bytes of a code of the learned codec, with the size of the image and a checksum."""

import binascii
import struct
from dataclasses import dataclass

from ..base import CodecError, check_side
from .transforms import NUM_STEP_INDICES

_STEP_MASK, _GREY_FLAG, _SQUARE_FLAG = NUM_STEP_INDICES - 1, 1 << 6, 1 << 7  # of the first byte of a code
_CHECK = struct.Struct(">H")


@dataclass(frozen=True)
class CodeHeader:
    """The parts of a code: size, quantisation step and grey flag of the image, and the payload of the range coder.

    A code is a byte for step, grey and square, the height, the width unless square, two check bytes and the payload.
    """

    height: int
    width: int
    step_index: int
    is_grey: bool
    payload: bytes

    def write(self, seed: int) -> bytes:
        """Return the code.

        Args:
            seed (`int`): Start of the check, which tells codecs with other weights apart.
        """
        first = self.step_index | _GREY_FLAG * self.is_grey | _SQUARE_FLAG * (self.height == self.width)
        sides = (self.height,) if self.height == self.width else (self.height, self.width)
        head = bytes([first]) + b"".join(_write_number(side) for side in sides)
        return head + _CHECK.pack(binascii.crc_hqx(head + self.payload, seed)) + self.payload

    @classmethod
    def read(cls, code: bytes, seed: int) -> "CodeHeader":
        """Read a code.

        Raises:
            CodecError: If it is not one of a codec with this seed.
        """
        height, start = _read_number(code, 1)
        width, start = (height, start) if code[:1] and code[0] & _SQUARE_FLAG else _read_number(code, start)
        payload = code[start + _CHECK.size :]
        if code[start : start + _CHECK.size] != _CHECK.pack(binascii.crc_hqx(code[:start] + payload, seed)):
            raise CodecError(
                f"Expected a code of the learned codec with these weights, got {len(code)} bytes that fail its check. "
                "Are they corrupt, or was the codec another?"
            )
        check_side(height, width)
        return cls(height, width, code[0] & _STEP_MASK, bool(code[0] & _GREY_FLAG), payload)


def _write_number(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([128 | number >> 7, number & 127])


def _read_number(code: bytes, start: int) -> tuple[int, int]:
    """Return the number that starts there, and where it ends."""
    first, second = code[start : start + 1], code[start + 1 : start + 2]
    if first >= b"\x80":
        return (first[0] & 127) << 7 | (second[0] if second else 0), start + 2
    return first[0] if first else 0, start + 1
