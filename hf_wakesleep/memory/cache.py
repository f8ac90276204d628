"""DecodedImages: what was decoded lately, so that memories that are read again and again are decoded once."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from ..codecs.base import Codec

MOST_BYTES = 256 * 2**20  # of pixels in main memory


class DecodedImages:
    """The images of the codes that a codec decoded last. They are never written anywhere.

    A code is decoded to the same pixels whatever else is in its batch, so nothing depends on what is held here.

    Args:
        codec ([`Codec`]): Decodes.
        most_bytes (`int`): Bytes of pixels to hold at most; what was not read for longest goes first.
    """

    def __init__(self, codec: Codec, most_bytes: int = MOST_BYTES):
        self._codec, self._room = codec, most_bytes
        self._images: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def decode(self, codes: Sequence[bytes]) -> list[torch.Tensor]:
        """Return the images of some codes, uint8 tensors (3, H, W) that are not to be changed.

        Raises:
            CodecError: If a code is corrupt.
        """
        missing = [code for code in dict.fromkeys(codes) if code not in self._images]
        decoded = dict(zip(missing, self._codec.decode(missing), strict=True)) if missing else {}
        for code, image in decoded.items():
            self._images[code] = image.clone()  # not a view of its whole batch
            self._room -= image.nbytes
        images = []
        for code in codes:
            self._images.move_to_end(code)
            images.append(self._images[code])
        while self._room < 0:
            self._room += self._images.popitem(last=False)[1].nbytes
        return images
