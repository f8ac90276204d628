"""DecodedImageCache: keeps the images that were decoded last, so that replay decodes a code only once."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from ..codecs.base import Codec

MAX_CACHE_BYTES = 256 * 2**20  # of pixels in main memory


class DecodedImageCache:
    """Least-recently-used cache of decoded images, in main memory only; they are never written to disk.

    A code is decoded to the same pixels whatever else is in its batch, so results do not depend on the cache.

    Args:
        codec ([`Codec`]): Decodes the codes.
        max_bytes (`int`): Most bytes of pixels to keep.
    """

    def __init__(self, codec: Codec, max_bytes: int = MAX_CACHE_BYTES):
        self._codec, self._free_bytes = codec, max_bytes
        self._images: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def decode(self, codes: Sequence[bytes]) -> list[torch.Tensor]:
        """Return the images of some codes, uint8 tensors (3, H, W) that are not to be changed.

        Raises:
            CodecError: If a code is corrupt.
        """
        missing = [code for code in dict.fromkeys(codes) if code not in self._images]
        decoded = dict(zip(missing, self._codec.decode(missing), strict=True)) if missing else {}
        for code, image in decoded.items():
            self._images[code] = image.clone()  # a view would keep all images of its batch
            self._free_bytes -= image.nbytes
        images = []
        for code in codes:
            self._images.move_to_end(code)
            images.append(self._images[code])
        while self._free_bytes < 0:
            self._free_bytes += self._images.popitem(last=False)[1].nbytes
        return images
