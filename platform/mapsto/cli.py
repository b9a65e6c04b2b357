"""The command line. Imports lazily: `--help`, `check`, `schema` and `tasks` load neither Ray nor torch."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import cli_compare, cli_data
from .core.errors import UserError

if TYPE_CHECKING:
    from .config.schema import Recipe
    from .runtime.session import Session

VERBS = {
    "ingest": "read, check and split the images into a data set",
    "clean": "find bad images, duplicates, leaks and wrong labels; write a new version of the data set",
    "index": "a vector for every image of a data set, for `mapsto search`",
    "tune": "search the recipe's space for the best settings",
    "train": "train the model",
    "evaluate": "measure the model, and write a page with pictures",
    "compress": "export, quantize, measure and choose",
    "serve": "put the model behind an HTTP endpoint",
    "predict": "answer for a file, a folder or an S3 prefix; or draw samples",
    "run": "all stages of the recipe, going on after the last finished one",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for a bug (with its traceback), 2 for what the user can mend, 130
    for Ctrl-C, 143 for SIGTERM."""
    arguments = _parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return arguments.action(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mapsto schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from .runtime.failures import user_error

        told = user_error(error)
        if told is None:
            raise
        print(told, file=sys.stderr)
        return told.code
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(143)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mapsto", description="From a bucket of images to a served model, on Ray.",
        epilog="A verb's own options: mapsto VERB --help",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="VERB")
    for verb, about in VERBS.items():
        command = commands.add_parser(verb, help=about, description=about.capitalize() + ".")
        _verb_arguments(command, verb)
        command.add_argument(
            "--address", metavar="HOST:PORT", help="of a Ray cluster; default: RAY_ADDRESS, else a private local one"
        )
        command.add_argument("--cpus", type=int, metavar="N", help="of a private local cluster; default: the machine's")
        command.set_defaults(action=_stage, verb=verb)
    _submit_parser(commands)
    _job_parser(commands)
    cli_data.add(commands)
    cli_compare.add(commands)
    _search_parser(commands)
    check = commands.add_parser("check", help="validate a recipe; show it resolved, with the resources it needs")
    _recipe_arguments(check)
    check.set_defaults(action=_check)
    schema = commands.add_parser("schema", help="the recipe's JSON Schema, for editors")
    schema.set_defaults(action=_schema)
    tasks = commands.add_parser("tasks", help="which task works with which stage")
    tasks.add_argument("--markdown", action="store_true", help="as a Markdown table")
    tasks.set_defaults(action=_tasks)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe's YAML file, or its URI")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help="train.optimizer.lr=0.1; may be repeated",
    )


def _verb_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    _recipe_arguments(parser)
    if verb == "predict":
        parser.add_argument("inputs", nargs="*", help="image files, folders or URIs of either")
        parser.add_argument(
            "--model", choices=("train", "compress"), help="which stage's; default: the one that is served"
        )
        parser.add_argument("--endpoint", metavar="URL", help="ask a served model instead of loading one")
        parser.add_argument("--output", metavar="URI", help="where the answers go besides the artifact")
        parser.add_argument("--count", type=int, metavar="N", help="how many samples a generator draws")
        parser.add_argument("--seed", type=int, metavar="N", help="of a generator's samples")
        parser.add_argument(
            "--with",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            dest="fields",
            help="a further input, such as class=cat or style=painting.jpg; may be repeated",
        )
    if verb == "tune":
        parser.add_argument(
            "--apply", nargs="?", const="", metavar="FILE",
            help="write the recipe with the best settings, without its tune section; default: <recipe>-best.yaml",
        )  # fmt: skip
        parser.add_argument(
            "--trial", type=int, metavar="N", help="with --apply: this trial's settings, not the best one's"
        )
    if verb == "run":
        parser.add_argument("--until", metavar="STAGE", help="the last stage to run; default: all of them")
    if verb in ("ingest", "clean", "index"):
        default = "train" if verb == "index" else "all"
        parser.add_argument("--role", help=f"one of the recipe's data sets; default: {default}")
    if verb == "ingest":
        parser.add_argument(
            "--layout", metavar="NAME", help="how the source lies; default: the recipe's, or found by its look"
        )
    parser.add_argument("--force", action="store_true", help="make the stage's artifact anew")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="only errors")
    loudness.add_argument("--verbose", action="store_true", help="Ray's own output, too")


def _submit_parser(commands: Any) -> None:
    submit = commands.add_parser("submit", help="any of these as a Ray job on a cluster elsewhere")
    verbs = submit.add_subparsers(required=True, metavar="VERB")
    for verb, about in VERBS.items():
        command = verbs.add_parser(verb, help=about)
        _verb_arguments(command, verb)
        _dashboard_argument(command)
        command.add_argument("--no-wait", action="store_true", help="do not follow the logs")
        command.set_defaults(action=_submit, verb=verb)


def _job_parser(commands: Any) -> None:
    verbs = commands.add_parser("job", help="list, follow and stop submitted jobs").add_subparsers(
        required=True, metavar="VERB"
    )
    for verb in ("list", "status", "logs", "stop"):
        command = verbs.add_parser(verb)
        if verb != "list":
            command.add_argument("job", help="its id, from `mapsto submit` or `mapsto job list`")
        if verb == "logs":
            command.add_argument(
                "--follow", "-f", action="store_true", help="until the job ends; its exit code becomes this one's"
            )
        _dashboard_argument(command)
        command.set_defaults(action=_job, verb=verb)


def _search_parser(commands: Any) -> None:
    search = commands.add_parser(
        "search", help="the images of a data set that look most like one; after `mapsto index`"
    )
    _recipe_arguments(search)
    search.add_argument("--role", default="train", help="one of the recipe's data sets; default: train")
    asked = search.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", metavar="URI", help="an image file, or its URI")
    asked.add_argument("--row", type=int, metavar="ROW_ID", help="an image of the data set itself")
    search.add_argument("--top", type=int, default=12, metavar="N", help="how many; default: 12")
    search.add_argument(
        "--least", type=float, metavar="SCORE", help="leave out what is less alike; with nothing left it is `unknown`"
    )
    search.add_argument("--output", metavar="FILE", help="a page that shows them")
    search.set_defaults(action=_search)


def _dashboard_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="URL", help="of the cluster's dashboard, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS"
    )


def _stage(arguments: argparse.Namespace) -> int:
    """Run one stage, or all, on a cluster; a private one ends with it."""
    from .config.load import load
    from .runtime import progress

    progress.configure(quiet=arguments.quiet)
    recipe = load(arguments.recipe, arguments.overrides)
    if layout := getattr(arguments, "layout", None):
        roles = [role for role in recipe.data if arguments.role in (None, role)]
        recipe = load(arguments.recipe, [*arguments.overrides, *(f"data.{role}.layout={layout}" for role in roles)])
    options = _options(arguments)
    if arguments.verb == "predict" and options.get("endpoint"):
        return _produce(recipe, arguments, options)  # the work is done elsewhere
    from .runtime import session

    shown = (
        arguments.verb in ("tune", "run", "serve") or recipe.trial_workers > 1
    )  # a stage makes the sweep it builds on
    with session.connected(arguments.address, arguments.cpus, verbose=arguments.verbose, dashboard=shown) as cluster:
        code = _produce(recipe, arguments, options)
        if cluster.private and _serves(recipe, arguments.verb, getattr(arguments, "until", None)):
            _hold(cluster, progress.say)
        return code


def _produce(recipe: Recipe, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from .runtime.progress import say
    from .stages import pipeline

    if arguments.verb == "run":
        pipeline.run_all(recipe, arguments.until, force=arguments.force, say=say)
    elif arguments.verb in ("ingest", "clean", "index"):
        every = ["train"] if arguments.verb == "index" and "train" in recipe.data else list(recipe.data)
        roles = [arguments.role] if arguments.role else every
        unknown = [role for role in roles if role not in recipe.data]
        if unknown:
            raise UserError(f"--role {unknown[0]}: the recipe's data sets are {', '.join(recipe.data)}")
        for role in roles:
            pipeline.produce(recipe, arguments.verb, {"role": role}, force=arguments.force, say=say)
    else:
        artifact = pipeline.produce(recipe, arguments.verb, options, force=arguments.force, say=say)
        if arguments.verb == "tune" and arguments.apply is not None:
            from .stages import tune_apply

            found = tune_apply.settings(artifact, recipe, arguments.trial)
            target = tune_apply.apply(arguments.recipe, arguments.overrides, recipe, found, arguments.apply or None)
            say(f"tune: wrote {target}")
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What predict's own arguments say, without those not given."""
    if arguments.verb != "predict":
        return {}
    from .core.storage import absolute

    given = {
        "inputs": [absolute(each) for each in arguments.inputs],
        "output": absolute(arguments.output) if arguments.output else None,
        "endpoint": arguments.endpoint, "model": arguments.model, "count": arguments.count, "seed": arguments.seed,
        "fields": _fields(arguments.fields),
    }  # fmt: skip
    return {name: value for name, value in given.items() if value not in (None, [], {})}


def _fields(given: list[str]) -> dict[str, str]:
    wrong = [each for each in given if "=" not in each]
    if wrong:
        raise UserError(f"--with {wrong[0]}: NAME=VALUE is wanted")
    return {name: value for name, _, value in (each.partition("=") for each in given)}


def _serves(recipe: Recipe, verb: str, until: str | None) -> bool:
    from .core.registry import task_class

    if verb == "run":
        return until in (None, "serve") and "serve" not in task_class(recipe.task.kind).unsupported
    return verb == "serve"


def _hold(cluster: Session, say: Callable[[str], None]) -> NoReturn:
    """A private cluster's endpoint lives as long as this command."""
    say(f"serving until Ctrl-C (Ray dashboard: {cluster.dashboard})")
    while True:
        time.sleep(1)


def _submit(arguments: argparse.Namespace) -> int:
    from .config.load import portable
    from .runtime import jobs, progress

    progress.configure(quiet=arguments.quiet)
    text, overrides = portable(arguments.recipe, arguments.overrides)
    given: list[str] = []
    for name, value in _options(arguments).items():
        if name == "fields":
            given += [word for field, one in value.items() for word in ("--with", f"{field}={one}")]
        else:
            given += value if name == "inputs" else [f"--{name}", str(value)]
    given += [word for override in overrides for word in ("--set", override)]
    given += [f"--{name}" for name in ("force", "quiet", "verbose") if getattr(arguments, name)]
    if arguments.verb == "tune" and arguments.apply is not None:
        raise UserError(
            "--apply writes a file here: run `mapsto tune --apply` here once the job has ended; it finds the sweep done"
        )
    for name in ("role", "layout", "until"):
        if value := getattr(arguments, name, None):
            given += [f"--{name}", value]
    return jobs.submit(arguments.verb, text, given, arguments.address, wait=not arguments.no_wait, say=progress.say)


def _job(arguments: argparse.Namespace) -> int:
    from .runtime import jobs

    if arguments.verb == "logs":
        return jobs.logs(arguments.job, arguments.address, wait=arguments.follow)
    if arguments.verb == "list":
        print("\n".join(jobs.listing(arguments.address)) or "no jobs")
    else:
        print(getattr(jobs, arguments.verb)(arguments.job, arguments.address))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from .config.load import load
    from .stages.search import search

    recipe = load(arguments.recipe, arguments.overrides)
    for line in search(
        recipe, arguments.role, image=arguments.image, row=arguments.row, top=arguments.top, least=arguments.least,
        output=arguments.output,
    ):  # fmt: skip
        print(line)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """The resolved recipe as YAML; what it needs follows as comments, so that the output is a recipe again."""
    from .config.load import describe, load
    from .runtime.resources import estimate

    recipe = load(arguments.recipe, arguments.overrides)
    print(describe(recipe), end="")
    print("\n# Needs (memory is an estimate, without the model's own):")
    for need in estimate(recipe):
        gpus = f", {need.gpus:g} GPUs" if need.gpus else ""
        print(f"# {need.stage:<9} {need.cpus:>4g} CPUs{gpus}, {need.memory_mb / 1024:5.1f} GiB   {need.why}")
    return 0


def _schema(_: argparse.Namespace) -> int:
    import json

    from .config.load import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def _tasks(arguments: argparse.Namespace) -> int:
    from .core.registry import STAGES, TASKS, task_class

    rows = [
        [kind, *("yes" if s not in task_class(kind).unsupported else "no" for s in STAGES), task_class(kind).about]
        for kind in TASKS
    ]
    print(_table([["task", *STAGES, "what it is"], *rows], arguments.markdown))
    reasons = [
        f"{kind}, {s}: {task_class(kind).unsupported[s]}"
        for kind in TASKS
        for s in STAGES
        if s in task_class(kind).unsupported
    ]
    if reasons:
        print("\n" + "\n".join(f"- {reason}" if arguments.markdown else reason for reason in reasons))
    return 0


def _table(rows: list[list[str]], markdown: bool) -> str:
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
