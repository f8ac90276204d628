"""DecodedImageCache: nothing but time depends on what it holds."""

import pytest
import torch

from hf_wakesleep import RawCodec, WebPCodec
from hf_wakesleep.codecs.base import CodecError
from hf_wakesleep.memory.cache import DecodedImageCache


class CountingCodec(RawCodec):
    """Counts the codes that it decodes."""

    count = 0

    def decode(self, codes):
        self.count += len(codes)
        return super().decode(codes)


@pytest.fixture
def images():
    return torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_same_images_as_the_codec_in_any_order_and_with_repetitions(images):
    codec = WebPCodec(50)
    codes = codec.encode(images)
    decoded = DecodedImageCache(codec, max_bytes=3 * images[0].nbytes)
    for rows in ([0, 1, 2], [5, 1, 1, 0], [0, 1, 2, 3, 4, 5], [3], []):
        wanted = [codes[row] for row in rows]
        assert all(torch.equal(*pair) for pair in zip(decoded.decode(wanted), codec.decode(wanted), strict=True))


def test_what_is_held_is_not_decoded_again_and_what_was_not_read_for_longest_goes_first(images):
    codec = CountingCodec()
    codes = codec.encode(images)
    decoded = DecodedImageCache(codec, max_bytes=2 * images[0].nbytes)
    decoded.decode([codes[0], codes[1], codes[0]])
    assert codec.count == 2
    decoded.decode([codes[0], codes[2]])  # drops 1
    assert codec.count == 3
    decoded.decode([codes[0], codes[2]])
    assert codec.count == 3
    decoded.decode([codes[1]])
    assert codec.count == 4


def test_a_corrupt_code_fails_every_time_and_spoils_nothing(images):
    codec = WebPCodec(50)
    codes = codec.encode(images)
    decoded = DecodedImageCache(codec)
    for _ in range(2):
        with pytest.raises(CodecError):
            decoded.decode([codes[0], codes[1][:-3]])
    assert torch.equal(decoded.decode(codes[:1])[0], codec.decode(codes[:1])[0])
