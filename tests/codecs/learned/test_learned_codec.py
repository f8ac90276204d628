"""LearnedCodec: small codes that decode everywhere to the same pixels, or to one kind of error."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from hf_wakesleep import CodecError, LearnedCodec, SemiParametricMemory
from hf_wakesleep.codecs.learned.codec import WEIGHTS_FOLDER
from hf_wakesleep.codecs.learned.header import CodeHeader
from hf_wakesleep.codecs.learned.networks import FIT_LAYERS

CODEC = LearnedCodec(quality=30)
CODES = Path(__file__).parent / "codes"


def read_png(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def photograph(side=128):
    image = Image.fromarray(load_sample_images().images[0]).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def digits(among=range(10), count=100):
    data = load_digits()
    chosen = np.flatnonzero(np.isin(data.target, list(among)))[:count]
    images = torch.from_numpy(np.round(data.images[chosen] * (255 / 16)).astype(np.uint8))
    return list(images[:, None].expand(-1, 3, -1, -1))


def psnr(images, decoded):
    errors = [((a.float() - b.float()) ** 2).mean() for a, b in zip(images, decoded, strict=True)]
    return 10 * torch.log10(255**2 / torch.stack(errors).mean()).item()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70), st.booleans(), st.integers(0, 100), st.integers(0, 2**31))
def test_any_size_and_grey_come_back_in_shape(height, width, is_grey, quality, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    image = image[:1].expand(3, -1, -1) if is_grey else image
    codec = LearnedCodec(quality)
    (decoded,) = codec.decode(codec.encode([image]))
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, height, width)
    if is_grey:
        assert torch.equal(decoded[0], decoded[1])
        assert torch.equal(decoded[0], decoded[2])


def test_quality_trades_size_for_fidelity():
    image = photograph()
    found = []
    for quality in (0, 30, 60, 100):
        codec = LearnedCodec(quality)
        (code,) = codec.encode([image])
        found.append((len(code), psnr([image], codec.decode([code]))))
    assert found == sorted(found)
    assert found[0][1] > 18
    assert found[-1][1] > 27


def test_a_photograph_takes_fewer_bytes_than_webp_at_the_same_fidelity():
    image = photograph()
    (code,) = CODEC.encode([image])
    ours = psnr([image], CODEC.decode([code]))
    for quality in range(101):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "WEBP", quality=quality, method=6)
        decoded = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        if psnr([image], [decoded]) >= ours:
            break
    assert len(code) < 0.9 * len(file.getvalue())


def test_codes_and_pixels_depend_on_neither_batch_nor_company():
    images = [photograph(64), photograph(64).flip(1), photograph(40), photograph(64).flip(2)]
    codes = CODEC.encode(images)
    assert codes == [CODEC.encode([image])[0] for image in images]
    for code, decoded in zip(codes, CODEC.decode(codes), strict=True):
        assert torch.equal(CODEC.decode([code])[0], decoded)


def test_code_and_pixels_are_those_that_were_written_down():
    """Machines and versions must agree."""
    code = (CODES / "photograph-32.bin").read_bytes()
    original, decoded = (read_png(CODES / f"photograph-32-{name}.png") for name in ("original", "decoded"))
    assert torch.equal(CODEC.decode([code])[0], decoded)
    assert CODEC.encode([original]) == [code]


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_code_with_a_changed_byte_is_refused(data):
    (code,) = CODEC.encode([photograph(24)])
    place = data.draw(st.integers(0, len(code) - 1))
    other = bytearray(code)
    other[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodecError, match="Expected"):
        CODEC.decode([bytes(other)])


def test_a_truncated_or_longer_code_is_refused():
    (code,) = CODEC.encode([photograph(24)])
    for other in (*(code[:end] for end in range(len(code))), code + b"\1"):
        with pytest.raises(CodecError, match="Expected"):
            CODEC.decode([other])


@pytest.mark.slow
def test_payloads_that_are_forged_under_a_right_check_give_an_image_or_one_kind_of_error():
    generator = np.random.default_rng(0)
    header = CodeHeader.read(CODEC.encode([photograph(24)])[0], CODEC._seed)
    for _ in range(200):
        forged = replace(header, payload=damaged(header.payload, generator)).write(CODEC._seed)
        try:
            (image,) = CODEC.decode([forged])
        except CodecError:
            continue
        assert image.shape == (3, 24, 24)


@pytest.mark.slow
def test_a_fitted_codec_takes_fewer_bytes_for_images_of_its_kind():
    first, later = digits(among=(0, 1)), digits(among=range(2, 10))
    fitted = LearnedCodec(40).fit(first, steps=60)
    assert 0 < fitted.num_bytes < 40_000
    sizes, fidelity = {}, {}
    for name, codec in (("shipped", LearnedCodec(40)), ("fitted", fitted)):
        codes = codec.encode(later)
        sizes[name] = sum(map(len, codes))
        fidelity[name] = psnr(later, codec.decode(codes))
    assert sizes["fitted"] < 0.9 * sizes["shipped"]
    assert fidelity["fitted"] > fidelity["shipped"] - 1


def test_a_tone_costs_no_bytes_of_a_code_and_makes_its_image_more_faithful():
    """Fitted to images of two digits, it serves the others: what quantisation left grey becomes black or white."""
    first, later = digits(among=(0, 1)), digits(among=range(2, 10))
    plain, toned = LearnedCodec(40), LearnedCodec(40).fit(first, steps=0)
    codes = toned.encode(later)
    assert [len(code) for code in codes] == [len(code) for code in plain.encode(later)]
    assert psnr(later, toned.decode(codes)) > psnr(later, plain.decode(plain.encode(later))) + 1
    with pytest.raises(CodecError, match="was the codec another"):
        plain.decode(codes)
    again = LearnedCodec(40, state_dict=toned.state_dict())
    assert all(map(torch.equal, again.decode(codes), toned.decode(codes)))
    assert toned.fit(first, steps=0).digest() == toned.digest()


def test_what_is_fitted_follows_from_images_and_seed():
    images = digits(among=(0, 1))
    first, again, other = (LearnedCodec(40).fit(images, steps=2, seed=seed).digest() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
def test_what_was_fitted_before_stays_when_fewer_layers_are_fitted_again():
    images = digits(among=(0, 1))
    shipped = LearnedCodec(40).networks.pack()
    once = LearnedCodec(40).fit(images, steps=20, layers="all").state_dict()
    twice = LearnedCodec(40, state_dict=once).fit(images, steps=20).state_dict()
    inner, outer = "analysis.blocks.0.mix.weight", "analysis.linear.weight"
    assert not torch.equal(once[inner], shipped[inner])
    assert torch.equal(once[inner], twice[inner])
    assert not torch.equal(once[outer], twice[outer])


def test_a_target_chooses_the_quality():
    images = digits()
    codec = LearnedCodec().fit(images, target_bytes=16, steps=0)
    assert np.mean([len(code) for code in codec.encode(images)]) <= 16
    assert codec.num_bytes == 256
    with pytest.raises(ValueError, match="`target_bytes` must be at least"):
        LearnedCodec().fit(images, target_bytes=2, steps=0)
    with pytest.raises(ValueError, match="got none"):
        LearnedCodec().fit([], target_bytes=16)
    with pytest.raises(ValueError, match="must be one of .* got 'inner'"):
        LearnedCodec().fit(images, layers="inner")


@pytest.mark.parametrize("layers", FIT_LAYERS)
def test_a_memory_keeps_a_fitted_codec_and_other_codecs_refuse_its_codes(layers, tmp_path):
    images = digits(count=20)
    codec = LearnedCodec().fit(images, steps=2, layers=layers)
    memory = SemiParametricMemory(codec)
    memory.set_classes(["digit"], 0)
    memory.write(codec.encode(images), [0] * len(images), task=0)
    assert memory.num_bytes.codec == codec.num_bytes > 0
    memory.save(tmp_path)
    loaded = SemiParametricMemory.load(tmp_path)
    everything = range(len(images))
    assert torch.equal(loaded.read(everything)[0], memory.read(everything)[0])
    with pytest.raises(CodecError, match="was the codec another"):
        CODEC.decode(codec.encode(images[:1]))


@pytest.mark.parametrize("quality", [-1, 101, 3.5, True])
def test_qualities_that_are_none_are_refused(quality):
    with pytest.raises(ValueError, match="`quality` of the learned codec"):
        LearnedCodec(quality)


def test_unknown_weights_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"must be one of \['natural-1'\]"):
        LearnedCodec(weights="../secret")


def test_what_ships_is_small():
    assert sum(path.stat().st_size for path in WEIGHTS_FOLDER.glob("*.safetensors")) < 1_000_000
