"""A sweep for people: the table of its trials, their curves, and each setting against the metric."""

from __future__ import annotations

import math
from typing import Any

from ..core import chart
from ..core.page import Page
from .tune_trial import Trial, Trials


def page(recipe: Any, trials: Trials, best: Trial) -> Page:
    config, metric = recipe.tune, trials.metric
    built = Page(
        f"{recipe.name}: tuning",
        f"{config.search} search, scheduler {config.scheduler.kind}, {trials.epochs} epochs a trial",
    )
    built.cards({f"best {metric}": best.value, "trials": len(trials.all()), **best.overrides})
    measured = [t for t in trials.all() if t.value is not None and not t.failed]
    built.heading("Each setting against the metric")
    for path, space in config.space.items():
        values = [t.overrides[path] for t in measured]
        if values and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            built.picture(
                chart.scatter(values, [t.value or 0.0 for t in measured], path, metric, log=space.kind == "loguniform")
            )
    if trials.epochs > 1:
        built.heading("Curves")
        epochs = list(range(1, trials.epochs + 1))
        curves = {}
        for each in measured[:12]:
            by_epoch = {int(epoch): value for epoch, value in each.curve}
            curves[f"trial {each.number}"] = [by_epoch.get(epoch, math.nan) for epoch in epochs]
        built.picture(chart.lines(curves, epochs, "epoch", metric))
    built.heading("Trials")
    paths = list(config.space)
    rows = [
        [
            t.number,
            *(t.overrides.get(p) for p in paths),
            t.value if not t.failed else None,
            t.epochs,
            t.row()["state"],
            t.uri or t.failed,
        ]
        for t in trials.all()
    ]
    built.table(["trial", *paths, metric, "epochs", "state", "artifact"], rows, chosen=trials.all().index(best))
    return built
