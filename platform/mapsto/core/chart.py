"""Charts for the report pages, as SVG bytes: lines and a matrix of counts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GREY = "#8a94a0"


def lines(curves: Mapping[str, Sequence[float]], x: Sequence[float], xlabel: str, ylabel: str = "") -> bytes:
    """One line per name over the same x; NaN leaves a gap."""
    figure, axes = _axes(5.2, 3.0)
    for name, values in curves.items():
        axes.plot(x, values, label=name, linewidth=1.8, marker="." if len(x) < 30 else None)
    _label(axes, xlabel, ylabel)
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor=GREY)
    return _svg(figure)


def scatter(x: Sequence[float], y: Sequence[float], xlabel: str, ylabel: str, log: bool = False) -> bytes:
    figure, axes = _axes(4.4, 3.0)
    axes.scatter(x, y, s=22)
    if log:
        axes.set_xscale("log")
    _label(axes, xlabel, ylabel)
    return _svg(figure)


def bars(values: Mapping[str, float], ylabel: str) -> bytes:
    figure, axes = _axes(max(4.0, 0.35 * len(values)), 3.0)
    axes.bar(range(len(values)), list(values.values()))
    axes.set_xticks(range(len(values)), list(values), rotation=60, ha="right", fontsize=8)
    _label(axes, "", ylabel)
    return _svg(figure)


def confusion(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """C×C counts, rows the truth, columns the prediction; coloured by the share of the row."""
    side = min(10.0, 2.2 + 0.42 * len(names))
    figure, axes = _axes(side, side)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= 20:
        for row, column in np.ndindex(matrix.shape):
            colour = "white" if share[row, column] > 0.55 else "#445"
            axes.text(column, row, str(int(matrix[row, column])), ha="center", va="center", fontsize=7, color=colour)
    _label(axes, "predicted", "true")
    axes.grid(False)
    return _svg(figure)


def reliability(confidence: Sequence[float], accuracy: Sequence[float]) -> bytes:
    """Accuracy over confidence, by bin, beside the diagonal of a calibrated model."""
    figure, axes = _axes(3.4, 3.0)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.plot(confidence, accuracy, marker="o", linewidth=1.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _label(axes, "confidence", "accuracy")
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=GREY, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)
    axes.grid(True, color=GREY, alpha=0.2, linewidth=0.6)
    return figure, axes


def _label(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=GREY, fontsize=9)
    axes.set_ylabel(ylabel, color=GREY, fontsize=9)


def _svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
