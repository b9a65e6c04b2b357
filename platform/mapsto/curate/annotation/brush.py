"""Label Studio's run lengths of brush masks: a stream of bits over RGBA values, as a list of bytes.

The stream: 32 bits, how many values; 5 bits, a value's size less one; four sizes of lengths, 4 bits each, less one. Then
blocks: 1 bit, whether it repeats one value; 2 bits, which size of length; the length less one; the value, or so many.
Sources: https://labelstud.io/tags/brushlabels, https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.errors import UserError
from ...core.runs import to_runs

WORD = 8
LENGTHS = (3, 4, 8, 16)
"""Bits of a block's length."""
CHANNELS = 4


def encode(pixels: np.ndarray) -> list[int]:
    """H×W bool → bytes: 255 in all four channels where true."""
    values = pixels.size * CHANNELS
    if values >= 2**32:
        raise UserError(f"a mask of {pixels.shape[1]}x{pixels.shape[0]} pixels is too large for Label Studio's format")
    bits = [f"{values:032b}", f"{WORD - 1:05b}", *(f"{size - 1:04b}" for size in LENGTHS)]
    for k, run in enumerate(to_runs(pixels.ravel())):
        left = run * CHANNELS
        while left:
            length = min(left, 1 << LENGTHS[-1])
            which = next(n for n, size in enumerate(LENGTHS) if length <= 1 << size)
            bits.append(f"1{which:02b}{length - 1:0{LENGTHS[which]}b}{255 * (k % 2):08b}")
            left -= length
    text = "".join(bits)
    size = -(-len(text) // 8)
    return list(int(text.ljust(size * 8, "0"), 2).to_bytes(size))


def decode(stream: Sequence[int], height: int, width: int) -> np.ndarray:
    """Bytes → H×W bool, true where the fourth channel, alpha, is not 0. Raises UserError for a broken stream, and one of
    another size."""
    try:
        bits = _Bits(bytes(stream))
    except (TypeError, ValueError) as error:
        raise UserError("a brush mask is a list of bytes, 0 to 255") from error
    values = bits.read(32)
    if values != height * width * CHANNELS:
        raise UserError(f"a brush mask of {values} values, not of {width}x{height} pixels in four channels")
    word = bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in LENGTHS]
    out = np.zeros(values, bool)
    done = 0
    while done < values:
        repeats = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        if done + length > values:
            raise UserError("a brush mask's stream is broken: it has more values than it says")
        if repeats:
            out[done : done + length] = bits.read(word) > 0
        else:
            out[done : done + length] = [bits.read(word) > 0 for _ in range(length)]
        done += length
    return out.reshape(height, width, CHANNELS)[:, :, 3]


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def read(self, count: int) -> int:
        """The next bits as a number, the highest first."""
        end = self.place + count
        if end > len(self.data) * 8:
            raise UserError("a brush mask's stream is broken: it ends too early")
        held = int.from_bytes(self.data[self.place // 8 : -(-end // 8)])
        self.place = end
        return (held >> (-end % 8)) & ((1 << count) - 1)
