"""CODECS: all codecs by name; a new one is added here."""

import inspect

import torch

from .base import Codec, RawCodec, WebPCodec
from .learned.codec import LearnedCodec

DEFAULT_CODEC = "webp"
CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (LearnedCodec, RawCodec, WebPCodec)}


def make_codec(name: str, state_dict: dict[str, torch.Tensor] | None = None, **settings) -> Codec:
    """Build a codec by name.

    Args:
        name (`str`): A key of `CODECS`.
        state_dict (`dict[str, torch.Tensor]`, *optional*): Weights, for codecs that have some.
        settings: What `Codec.settings` returned, or the codec's own arguments.

    Raises:
        ValueError: If there is no codec of that name, or it has no such settings.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise ValueError(f"`codec` must be one of {sorted(CODECS)}, got {name!r}.")
    given, known = {*settings, *(["state_dict"] if state_dict else [])}, inspect.signature(CODECS[name]).parameters
    if not given <= set(known):
        raise ValueError(f"The codec {name!r} has the settings {sorted(known)}, got {sorted(given - set(known))} too.")
    return CODECS[name](**settings) if not state_dict else CODECS[name](state_dict=state_dict, **settings)
