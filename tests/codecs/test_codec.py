"""Codecs: exactness of raw, fidelity of WebP, and errors for codes that are none."""

import io

import numpy as np
import pytest
import torch
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_wakesleep import Codec, CodecError, RawCodec, WebPCodec
from hf_wakesleep.codecs.base import add_checksum, strip_checksum
from hf_wakesleep.codecs.registry import CODECS, make_codec


def smooth_images(count=3, height=16, width=24):
    ramp = torch.linspace(0, 255, height)[:, None] * 0.5 + torch.linspace(0, 255, width)[None, :] * 0.5
    return [torch.stack([ramp, 255 - ramp, ramp.roll(index, 0)]).to(torch.uint8) for index in range(count)]


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 1000))
def test_raw_gives_back_every_pixel(height, width, grey, seed):
    generator = torch.Generator().manual_seed(seed)
    channels = 1 if grey else 3
    image = torch.randint(256, (channels, height, width), dtype=torch.uint8, generator=generator).expand(3, -1, -1)
    codec = RawCodec()
    (code,) = codec.encode([image])
    assert torch.equal(codec.decode([code])[0], image)
    assert len(code) <= 7 + 3 * height * width


def test_raw_keeps_one_channel_of_a_grey_image():
    assert len(RawCodec().encode([torch.full((3, 8, 8), 7, dtype=torch.uint8)])[0]) == 7 + 64


def test_webp_is_close_and_closer_at_a_higher_quality():
    images = smooth_images()
    errors = []
    for quality in (10, 95):
        codec = WebPCodec(quality=quality)
        decoded = codec.decode(codec.encode(images))
        assert [image.shape for image in decoded] == [image.shape for image in images]
        errors.append(max((a.float() - b.float()).abs().mean().item() for a, b in zip(decoded, images, strict=True)))
    assert errors[1] < errors[0] < 15


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_codec_takes_lists_and_batches_and_gives_the_same_for_any_batch_size(name):
    codec = make_codec(name)
    assert isinstance(codec, Codec)
    images = torch.stack(smooth_images())
    codes = codec.encode(images)
    assert codes == codec.encode(list(images))
    assert all(isinstance(code, bytes) for code in codes)
    for one, many in zip(codes, codec.decode(codes), strict=True):
        assert many.dtype == torch.uint8
        assert torch.equal(codec.decode([one])[0], many)


@pytest.mark.parametrize("name", sorted(CODECS))
@given(code=st.binary(max_size=64), seals=st.booleans())
def test_bytes_that_are_no_code_are_one_kind_of_error(name, code, seals):
    if seals and code[:1] not in (b"\x01", b"\x03"):  # which may be a raw code
        code = add_checksum(code)
    with pytest.raises(CodecError, match="Expected"):
        make_codec(name).decode([code])


@pytest.mark.parametrize("name", sorted(CODECS))
def test_2000_damaged_codes_are_one_kind_of_error(name):
    codec, generator = make_codec(name), np.random.default_rng(0)
    codes = codec.encode(smooth_images())
    refused = 0
    for number in range(2000):
        code = damaged(codes[number % 3], generator)
        if code in codes:  # nothing was cut out, say
            continue
        with pytest.raises(CodecError, match="Expected"):
            codec.decode([code])
        refused += 1
    assert refused > 1800


@pytest.mark.parametrize("name", ["raw", "webp"])
def test_2000_damaged_contents_under_a_right_check_are_an_image_or_one_kind_of_error(name):
    codec, generator = make_codec(name), np.random.default_rng(0)
    contents = [strip_checksum(code) for code in codec.encode(smooth_images())]
    for number in range(2000):
        try:
            (image,) = codec.decode([add_checksum(damaged(contents[number % 3], generator))])
        except CodecError:
            continue
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


def test_a_webp_code_is_a_file_that_readers_of_webp_open():
    (code,) = WebPCodec().encode(smooth_images(1))
    with Image.open(io.BytesIO(code)) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(pixels, WebPCodec().decode([code])[0])


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_truncated_code_is_refused(name):
    codec = make_codec(name)
    (code,) = codec.encode(smooth_images(1))
    with pytest.raises(CodecError, match="Expected"):
        codec.decode([code[: len(code) // 2]])


def test_a_code_of_a_huge_image_is_refused_before_it_is_decoded():
    with pytest.raises(CodecError, match="4096"):
        RawCodec().decode([add_checksum(RawCodec._header.pack(3, 60000, 60000))])
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 1)).save(buffer, "WEBP")
    with pytest.raises(CodecError, match="4096"):
        WebPCodec().decode([add_checksum(buffer.getvalue())])


def test_another_image_format_is_no_webp_code():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(CodecError, match="WebP"):
        WebPCodec().decode([add_checksum(buffer.getvalue())])


def test_settings_build_the_same_codec_again():
    codec = make_codec("webp", **WebPCodec(quality=7).settings())
    assert codec.quality == 7


def test_unknown_codecs_and_qualities_are_refused():
    with pytest.raises(ValueError, match="must be one of"):
        make_codec("jpeg2000")
    with pytest.raises(ValueError, match=r"0\.\.100"):
        WebPCodec(quality=101)
