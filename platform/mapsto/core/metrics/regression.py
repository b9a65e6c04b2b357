"""Metrics of a number per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..page import Page
from ..sample import Arrays, finite

SHOWN = 1000
"""Points of the page's chart."""


class RegressionMetrics:
    """r2, the coefficient of determination: 1 less the squared errors' share of the truth's own spread (1 is best, 0 as good as the
    mean, no lower limit); mae and rmse, in the values' own unit."""

    primary = "r2"
    mode: Literal["max", "min"] = "max"

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        return {
            "answer": finite(np.asarray(output["value"], np.float64), "regress: the model's answers"),
            "value": np.asarray(batch["value"], np.float64),
        }

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Where all values are equal, r2 is 1 for answers without error and 0 for others, as in scikit-learn."""
        error, truth = states["answer"] - states["value"], states["value"]
        squared, spread = float(np.square(error).sum()), float(np.square(truth - truth.mean()).sum())
        r2 = 1 - squared / spread if spread else float(squared == 0)
        return {"r2": r2, "mae": float(np.abs(error).mean()), "rmse": float(np.sqrt(np.square(error).mean()))}

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        answer, value = states["answer"], states["value"]
        error = answer - value
        marks = (5, 25, 50, 75, 95)
        return {
            "truth": value[:SHOWN].tolist(),
            "answer": answer[:SHOWN].tolist(),
            "error": {str(mark): float(found) for mark, found in zip(marks, np.percentile(error, marks), strict=True)},
        }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        from .. import chart

        page.heading("Answers")
        page.picture(chart.scatter(tables["truth"], tables["answer"], "truth", "answer"), f"at most {SHOWN:,} rows")
        page.heading("Errors")
        page.text("Answer less truth: so many per cent of the rows have less.")
        page.table(("%", "error"), list(tables["error"].items()))

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.abs(states["answer"] - states["value"])
