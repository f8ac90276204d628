"""Damage: what a disk may do to a code."""

import numpy as np


def damaged(code: bytes, generator: np.random.Generator) -> bytes:
    """Return a code with some bits turned, a part cut out, or a part overwritten or put in."""
    content, kind = bytearray(code), generator.integers(4)
    start, end = sorted(generator.integers(len(code) + 1, size=2))
    if kind == 0:
        for place in generator.integers(len(code), size=generator.integers(1, 5)):
            content[place] ^= 1 << generator.integers(8)
    elif kind == 1:
        del content[start:end]
    else:
        content[start : end if kind == 2 else start] = generator.bytes(end - start)
    return bytes(content)
