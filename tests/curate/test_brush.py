"""Label Studio's brush masks: there and back, as the tool writes them, broken ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mapsto.core.errors import UserError
from mapsto.curate.annotation import brush


def documented(stream: list[int]) -> list[int]:
    """The values of a rle-pack stream, bit by bit as its description has it: an implementation of its own."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    place = 0

    def take(n: int) -> int:
        nonlocal place
        place += n
        return int(bits[place - n : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        repeat, length = take(1), take(sizes[take(2)]) + 1
        out += [take(word)] * length if repeat else [take(word) for _ in range(length)]
    return out


masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 40)))


@settings(max_examples=80, deadline=None)
@given(masks)
def test_brush_masks_there_and_back(pixels):
    stream = brush.encode(pixels)
    assert all(0 <= byte <= 255 for byte in stream)
    assert documented(stream) == np.repeat(pixels.ravel() * 255, 4).tolist()
    np.testing.assert_array_equal(brush.decode(stream, *pixels.shape), pixels)


def test_a_brush_mask_larger_than_the_longest_run():
    pixels = np.zeros((300, 400), bool)
    pixels[3:250, 7:] = True
    np.testing.assert_array_equal(brush.decode(brush.encode(pixels), 300, 400), pixels)
    everything = np.ones((300, 400), bool)
    assert documented(brush.encode(everything)) == [255] * 480_000


@settings(max_examples=40, deadline=None)
@given(masks, st.randoms(use_true_random=False))
def test_brush_streams_as_the_tool_itself_writes_them(pixels, random):
    """With other sizes and blocks of single values, and half-transparent edges."""
    values = [int(v) for p in pixels.ravel() for v in (9, 9, 9, random.randint(1, 255) if p else 0)]
    sizes = (4, 6, 2, 9)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    place = 0
    while place < len(values):
        which = random.randrange(4)
        run = next(
            (n for n in range(1, len(values) - place) if values[place + n] != values[place]), len(values) - place
        )
        length = min(run if run > 1 else random.randint(1, 5), len(values) - place, 1 << sizes[which])
        part = values[place : place + length]
        same = len(set(part)) == 1
        bits += f"{int(same)}{which:02b}{length - 1:0{sizes[which]}b}" + "".join(
            f"{v:08b}" for v in (part[:1] if same else part)
        )
        place += length
    bits += "0" * (-len(bits) % 8)
    stream = [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]
    assert documented(stream) == values
    np.testing.assert_array_equal(brush.decode(stream, *pixels.shape), pixels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_noise_is_no_brush_mask_and_no_crash(noise):
    head = list((4 * 5 * 4).to_bytes(4))
    for stream in (noise, head + noise):
        try:
            assert brush.decode(stream, 5, 4).shape == (5, 4)
        except UserError as error:
            assert "brush mask" in str(error)  # noqa: PT017


@pytest.mark.parametrize("stream", [[256], [-1], ["a"], None, 5])
def test_what_is_no_list_of_bytes_says_so(stream):
    with pytest.raises(UserError, match=r"list of bytes, 0 to 255|ends too early|of \d+ values"):
        brush.decode(stream, 2, 2)
