"""The command line's part about several recipes: `mapsto compare`."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    about = "several recipes' models in one table, with what generators draw on one page"
    parser = commands.add_parser("compare", help=about, description=about.capitalize() + ".")
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="the recipes' YAML files, or their URIs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="in all of them; may be repeated"
    )  # fmt: skip
    parser.add_argument("--output", default="compare.html", metavar="FILE", help="the page; default: %(default)s")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster; default: RAY_ADDRESS, else a private one"
    )
    parser.add_argument("--cpus", type=int, metavar="N", help="of a private local cluster; default: the machine's")
    parser.set_defaults(action=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from .config.load import load
    from .core.storage import absolute
    from .runtime import progress, session
    from .stages.compare import check, compare

    recipes = [load(name, arguments.overrides) for name in arguments.recipes]
    check(recipes)  # before a cluster is started
    shown = any(recipe.trial_workers > 1 for recipe in recipes)  # it makes the sweeps that are not made yet
    with session.connected(arguments.address, arguments.cpus, dashboard=shown):
        compare(recipes, absolute(arguments.output), progress.say)
    return 0
