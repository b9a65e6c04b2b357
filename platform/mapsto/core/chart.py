"""Charts for the report pages, as SVG bytes: lines, points, bars, parallel coordinates, a matrix of counts, rates."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def scatter(
    x: Sequence[float], y: Sequence[float], xlabel: str, ylabel: str, log: bool = False, marked: Sequence[int] = ()
) -> bytes:
    """`marked`: numbers of the points to set off, joined by a line in the order of x (a Pareto front)."""
    figure, axes = _axes(4.4, 3.0)
    axes.scatter(x, y, s=22, color=GREY if marked else None)
    if marked:
        order = sorted(marked, key=lambda i: (x[i], y[i]))
        axes.plot([x[i] for i in order], [y[i] for i in order], marker="o", linewidth=1.2)
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


@dataclass(frozen=True)
class Axis:
    """One upright axis of parallel coordinates."""

    name: str
    values: Sequence[Any]
    """One per line: numbers, or (when any is none) names; None: the line leaves this axis out."""
    log: bool = False

    def places(self) -> tuple[list[float], list[tuple[float, str]]]:
        """Each line's height from 0 to 1 (NaN where it has none), and the axis' (height, text) marks."""
        known = [v for v in self.values if v is not None]
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
            names = sorted({str(v) for v in known})
            height = {name: i / max(len(names) - 1, 1) for i, name in enumerate(names)}
            heights = [np.nan if v is None else height[str(v)] for v in self.values]
            return heights, [(height[name], name) for name in names]
        scale = np.log if self.log else np.asarray
        numbers = np.array([np.nan if v is None else float(scale(v)) for v in self.values])
        low, high = (np.nanmin(numbers), np.nanmax(numbers)) if known else (0.0, 1.0)
        span = (high - low) or 1.0
        marks = [(0.0, f"{min(known):.3g}"), (1.0, f"{max(known):.3g}")] if known else []
        return list((numbers - low) / span), marks if high > low else marks[:1]


def parallel(axes_: Sequence[Axis], colour: Sequence[float], best: int | None = None) -> bytes:
    """A line per row across upright axes (Inselberg, The plane with parallel coordinates, 1985), coloured by `colour`
    from dark (least) to bright; `best`: the line to set off."""
    figure, axes = _axes(max(4.0, 1.5 * len(axes_)), 3.4)
    from matplotlib import colormaps

    placed = [axis.places() for axis in axes_]
    values = np.asarray(colour, float)
    order = np.argsort(np.argsort(values)) / max(len(values) - 1, 1)  # by rank: one outlier does not take all colours
    for row in np.argsort(order):
        own = {"linewidth": 2.6, "color": "#d1495b", "zorder": 3} if row == best else {}
        line = {"linewidth": 1.1, "alpha": 0.75, "color": colormaps["viridis"](0.9 * order[row]), **own}
        axes.plot(range(len(axes_)), [heights[row] for heights, _ in placed], marker=".", markersize=4, **line)
    for x, (_, marks) in enumerate(placed):
        axes.axvline(x, color=GREY, linewidth=0.8, alpha=0.6)
        for height, text in marks:
            axes.text(x + 0.03, height, text, color=GREY, fontsize=7, va="bottom" if height < 0.5 else "top")
    axes.set_xticks(range(len(axes_)), [axis.name for axis in axes_], fontsize=8)
    axes.set_yticks([])
    axes.grid(False)
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


def roc(far: Sequence[float], tar: Sequence[float]) -> bytes:
    """True over false acceptance rate, the second by its logarithm; points without false acceptance are left out."""
    figure, axes = _axes(4.4, 3.0)
    shown = [(x, y) for x, y in zip(far, tar, strict=True) if x > 0]
    axes.plot([x for x, _ in shown], [x for x, _ in shown], color=GREY, linewidth=1, linestyle="--")
    axes.plot(*zip(*shown, strict=True), linewidth=1.8)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    _label(axes, "false acceptance rate", "true acceptance rate")
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
