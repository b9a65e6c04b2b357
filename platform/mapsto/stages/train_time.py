"""What a training run spends its time on, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MUCH, SOME = 0.3, 0.1
"""Shares of the training time spent waiting for data, from which on the data is, or is a part of, the bottleneck."""


def bottleneck(history: Sequence[Mapping[str, float]]) -> str:
    """The bottleneck of a run's records, and the time of a step; the first epoch, which starts things, is left out where there are others."""
    records = history[1:] or history
    if not records:
        return "nothing was trained"
    seconds = sum(r["seconds"] for r in records)
    wait = sum(r["data_wait"] * r["seconds"] for r in records) / seconds
    validation = sum(r.get("val_seconds", 0.0) for r in records)
    steps = sum(r["seconds"] / r["step_seconds"] for r in records)
    step = f"a step takes {1000 * seconds / steps:.3g} ms, {wait:.0%} of it waiting for data".replace("%", " %")
    if wait > MUCH:
        what = "reading and decoding: give the data more CPUs, smaller images or less augmentation"
    elif validation > seconds:
        what = f"evaluation ({validation:.3g} s against {seconds:.3g} s of training): raise train.evaluate_every"
    elif wait > SOME:
        what = "the model, and reading and decoding nearly as much"
    else:
        what = (
            "the model: more workers, a smaller model or a lower train.precision would help, more data CPUs would not"
        )
    return f"{what}; {step}"
