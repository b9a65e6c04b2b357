"""A sweep for people: its front, its settings against the metric, what it hangs on, the trials' curves and their table."""

from __future__ import annotations

import math
from typing import Any

from ..config.tuning import walk
from ..core import chart
from ..core.page import Page
from .tune_importance import FEWEST, importance
from .tune_trials import Trial, Trials

CURVES = 12


def page(recipe: Any, trials: Trials, best: Trial) -> Page:
    config, metric = recipe.tune, trials.metric
    search = "a population" if trials.population else f"{config.search} search"
    built = Page(
        f"{recipe.name}: tuning", f"{search}, scheduler {config.scheduler.kind}, {trials.epochs} epochs a trial"
    )
    built.cards({f"best {metric}": best.values[metric], "trials": len(trials.all()), **best.overrides})
    measured = [t for t in trials.all() if metric in t.values and not t.failed]
    _front(built, trials)
    _settings(built, config, trials, measured, best)
    _importance(built, config, trials, measured)
    if trials.epochs > 1:
        built.heading("Curves")
        epochs = list(range(1, trials.epochs + 1))
        curves = {}
        for each in measured[:CURVES]:
            by_epoch = dict(each.curve)
            curves[f"trial {each.number}"] = [by_epoch.get(epoch, math.nan) for epoch in epochs]
        built.picture(chart.lines(curves, epochs, "epoch", metric))
        if len(measured) > CURVES:
            built.text(f"The first {CURVES} of {len(measured)} trials.")
    _table(built, config, trials, best)
    return built


def _front(built: Page, trials: Trials) -> None:
    """Each objective against the metric, with the trials that no other beats in everything."""
    others = list(trials.goals)[1:]
    if not others:
        return
    ended, front = trials.ended(), {t.number for t in trials.front()}
    built.heading("Pareto front")
    built.text(
        f"{len(front)} of {len(ended)} finished trials are beaten by no other in every objective at once (marked; in the table "
        f"with ●). The sweep goes on with the front's best by {trials.metric}; `mapsto tune --apply --trial N` takes another."
    )
    marked = [i for i, each in enumerate(ended) if each.number in front]
    for name in others:
        x = [t.values[name] for t in ended]
        built.picture(chart.scatter(x, [t.values[trials.metric] for t in ended], name, trials.metric, marked=marked))


def _settings(built: Page, config: Any, trials: Trials, measured: list[Trial], best: Trial) -> None:
    spaces = {
        path: each for _, path, each, _ in walk(config.space)
    }  # of a path in several branches, the last one's scale
    built.heading("Settings")
    axes = [
        chart.Axis(path.removeprefix("train."), [t.overrides.get(path) for t in measured], each.kind == "loguniform")
        for path, each in spaces.items()
    ]
    axes += [chart.Axis(name, [t.values[name] for t in measured]) for name in trials.goals]
    sign = 1 if trials.mode == "max" else -1
    if len(measured) > 1:
        built.picture(
            chart.parallel(axes, [sign * t.values[trials.metric] for t in measured], measured.index(best)),
            f"A line is a trial, the brighter the better its {trials.metric}; the chosen one is red.",
        )
    for path, each in spaces.items():
        values = {t.number: t.overrides[path] for t in measured if path in t.overrides}
        if values and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values.values()):
            scores = [t.values[trials.metric] for t in measured if t.number in values]
            built.picture(
                chart.scatter(list(values.values()), scores, path, trials.metric, log=each.kind == "loguniform")
            )


def _importance(built: Page, config: Any, trials: Trials, measured: list[Trial]) -> None:
    if trials.population:
        return  # their settings changed while they trained
    built.heading("What it hangs on")
    shares = importance(config, trials.goals, measured)
    if not shares:
        built.text(f"Too few trials to say ({len(measured)}, at least {FEWEST} wanted), or all came out alike.")
        return
    built.picture(chart.bars(shares, "share"))
    built.text(
        f"Each setting's share in what tells the best quarter of the trials by {trials.metric} from the rest (PED-ANOVA, "
        "arXiv 2304.10255), among the values that were tried."
    )


def _table(built: Page, config: Any, trials: Trials, best: Trial) -> None:
    built.heading("Trials")
    paths = list(dict.fromkeys(path for _, path, _, _ in walk(config.space)))
    front = {t.number for t in trials.front()} if len(trials.goals) > 1 else set()
    extra = ["front"] if front else []
    lineage = ["weights of"] if trials.population else []
    rows = []
    for t in trials.all():
        measures = [t.values.get(name) if not t.failed else None for name in trials.goals]
        donors = ", ".join(f"{s['donor']} (epoch {s['epoch']})" for s in t.settings if s["donor"])
        rows.append(
            [
                t.number,
                *(t.overrides.get(path) for path in paths),
                *measures,
                *(["●" if t.number in front else ""] if extra else []),
                *([donors] if lineage else []),
                t.epochs,
                t.state,
                t.uri or t.failed,
            ]
        )
    header = ["trial", *paths, *trials.goals, *extra, *lineage, "epochs", "state", "artifact"]
    built.table(header, rows, chosen=trials.all().index(best))
