"""A training run for people: a line per epoch, and a page of curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..core import chart
from ..core.page import Page
from .train_time import bottleneck
from .train_worker import Setup


def line(record: Mapping[str, float], epochs: int, primary: str) -> str:
    """`epoch 3/10  loss 1.234  mIoU 0.412  1,234 img/s  data wait 4 %`."""
    losses = {name: value for name, value in record.items() if name.startswith("train/") and name.endswith("loss")}
    parts = [f"epoch {int(record['epoch'])}/{epochs}"]
    parts += [f"{name.removeprefix('train/').replace('/', ' ')} {value:.4g}" for name, value in losses.items()]
    if f"val/{primary}" in record:
        parts.append(f"{primary} {record[f'val/{primary}']:.4f}")
    parts.append(f"{record['images_per_s']:,.0f} img/s")
    parts.append(f"data wait {record['data_wait']:.0%}".replace("%", " %"))
    return "  ".join(parts)


def page(title: str, setup: Setup, history: Sequence[Mapping[str, float]], kept: Mapping[str, float]) -> Page:
    """The run's figures and its curves by epoch. `kept`: the record of the weights that were kept."""
    built = Page(f"{title}: training", f"{setup.task.config.kind}, {len(history)} epochs")
    if not history:
        built.text("Nothing was trained: the weights are those of train.init.")
        return built
    last = history[-1]
    val = {name.removeprefix("val/"): value for name, value in kept.items() if name.startswith("val/")}
    memory = {"memory": f"{last['memory_mb']:,.0f} MB"} if "memory_mb" in last else {}
    speed = {"images/s": last["images_per_s"], "data wait": f"{last['data_wait']:.0%}"}
    built.cards({**dict(list(val.items())[:4]), **speed, **memory})
    if kept["epoch"] != last["epoch"]:
        built.text(f"The weights kept, and measured above, are those after epoch {kept['epoch']:.0f}.")
    built.text(f"The bottleneck is {bottleneck(history)}.")
    epochs = [record["epoch"] for record in history]
    names = list(dict.fromkeys(name for record in history for name in record))
    curves = {name: [record.get(name, math.nan) for record in history] for name in names}
    losses = {
        name.removeprefix("train/"): curves[name]
        for name in names
        if name.startswith("train/") and name.endswith("loss")
    }
    if losses:
        built.heading("Loss")
        built.picture(chart.lines(losses, epochs, "epoch", "training loss"))
    metrics = setup.task.metrics()
    shown = [name for name in names if name.startswith("val/")]
    shown = [name for name in shown if name == f"val/{metrics.primary}"] or shown[:1]
    if shown:
        built.heading("Validation")
        measured = [i for i, record in enumerate(history) if shown[0] in record]
        values = {name.removeprefix("val/"): [curves[name][i] for i in measured] for name in shown}
        built.picture(chart.lines(values, [epochs[i] for i in measured], "epoch", metrics.primary))
    built.heading("Learning rate")
    built.picture(chart.lines({"lr": curves["lr"]}, epochs, "epoch", "learning rate at the epoch's end"))
    built.heading("Epochs")
    header = [name for name in names if name not in ("time",)]
    built.table(header, [[int(r[n]) if n in ("epoch", "step") else r.get(n) for n in header] for r in history])
    return built
