"""Factors against torch's own schedulers and closed forms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from mapsto.config.schema import TrainConfig
from mapsto.engine.schedules import Plateau, factor

STEPS, PER_EPOCH = 60, 5


def ours(**schedule: Any) -> list[float]:
    f = factor(TrainConfig(schedule=schedule).schedule, PER_EPOCH, STEPS)  # type: ignore[arg-type]
    return [f(s) for s in range(STEPS)]


def torchs(make: Callable[[torch.optim.Optimizer], Any], steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


def test_fixed() -> None:
    assert ours(kind="fixed") == [1.0] * STEPS


def test_warmup_is_linear_and_spends_no_step_at_zero() -> None:
    np.testing.assert_allclose(ours(kind="fixed", warmup=0.1)[:8], [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])


def test_step_is_torchs() -> None:
    np.testing.assert_allclose(
        ours(kind="step", every=3, gamma=0.5),
        torchs(lambda o: lr_scheduler.StepLR(o, 3 * PER_EPOCH, 0.5)),
    )


def test_exponential_is_torchs() -> None:
    per_epoch = torchs(lambda o: lr_scheduler.ExponentialLR(o, 0.8), STEPS // PER_EPOCH)
    np.testing.assert_allclose(ours(kind="exponential", gamma=0.8), np.repeat(per_epoch, PER_EPOCH))


def test_cosine_is_torchs() -> None:
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1))
    np.testing.assert_allclose(ours(kind="cosine", final=0.1), expected, atol=1e-12)


def test_cosine_after_warmup_spans_the_rest() -> None:
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - 6), STEPS - 6)
    np.testing.assert_allclose(ours(kind="cosine", warmup=0.1)[6:], expected, atol=1e-12)


@pytest.mark.parametrize(("peak", "start", "final"), [(0.25, 0.1, 0.0), (0.5, 0.2, 0.05)])
def test_one_cycle_is_torchs_linear_one(peak: float, start: float, final: float) -> None:
    # torch ends on the last step; ours would reach `final` one step after it, so its cycle is one step longer
    total = STEPS + 1
    expected = torchs(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            1.0,
            total_steps=total,
            pct_start=(peak * STEPS + 1) / total,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=1 / start,
            final_div_factor=start / max(final, 1e-12),
        )
    )
    np.testing.assert_allclose(ours(kind="one_cycle", peak=peak, start=start, final=final), expected, atol=1e-9)


def test_plateau_is_torchs() -> None:
    values = [1.0, 0.9, 0.95, 0.93, 0.91, 0.92, 0.8, 0.8, 0.8, 0.8, 0.7]
    plateau = Plateau(
        TrainConfig(schedule={"kind": "plateau", "factor": 0.1, "patience": 2}).schedule,
        "min",
    )  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=2, threshold=0.0)
    for value in values:
        plateau.update(value)
        reference.step(value)
        assert plateau.factor == pytest.approx(optimizer.param_groups[0]["lr"])
    again = Plateau(plateau.schedule, "min")
    again.load(plateau.state())
    assert again.state() == plateau.state()
