"""Run lengths of masks: lengths of runs of 0 and 1 in turn, 0 first, and COCO's compressed text of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import UserError


def to_runs(flat: np.ndarray) -> list[int]:
    """A flat bool array → lengths of runs of 0 and 1 in turn; the first is of 0, and may be 0."""
    steps = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], steps, [flat.size]])).tolist() if flat.size else []
    return [0, *runs] if flat.size and flat[0] else runs


def from_runs(runs: Sequence[int], size: int) -> np.ndarray:
    """The flat bool array of `size` values. Raises UserError for a negative length, and where they do not add up."""
    lengths = np.asarray(runs, np.int64)
    if (lengths < 0).any() or lengths.sum() != size:
        raise UserError(f"run lengths: {len(lengths)} that add up to {lengths.sum()}, not to the mask's {size} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def from_text(text: str) -> list[int]:
    """Run lengths from COCO's compressed `counts`: five bits a character, differences to the run before the last
    (https://github.com/cocodataset/cocoapi, `rleFrString`). Raises UserError for what is none."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError(f"compressed run lengths: the character {character!r} is none of theirs")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise UserError("compressed run lengths: they end within a number")
    return runs


def to_text(runs: Sequence[int]) -> str:
    """COCO's compressed `counts` of run lengths (`rleToString`): what `from_text` reads."""
    values = np.asarray(runs, np.int64)
    values = np.concatenate([values[:3], values[3:] - values[1:-2]]) if len(values) > 3 else values
    out: list[str] = []
    for value in values.tolist():
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            out.append(chr((bits | (32 if more else 0)) + 48))
            if not more:
                break
    return "".join(out)
