"""The command line's part about data sets as they lie in the store: `mapsto data ...`, `mapsto gc`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from .core.errors import UserError
from .core.storage import absolute


def add(commands: Any) -> None:
    """`mapsto data ...` and `mapsto gc`."""
    about = {
        "show": "what a data set holds",
        "verify": "whether every shard is still what was written (sha256)",
        "diff": "how two data sets differ, image by image",
        "export": "write a data set out in a layout that others read",
        "card": "the data set's card, in Markdown",
        "review": "rows to an annotation tool, by a score of each",
        "corrections": "what people changed there, as JSON lines",
        "purge": "erase rows from every version that holds them",
    }
    verbs = commands.add_parser("data", help="show, verify, compare, export and review data sets").add_subparsers(
        required=True, metavar="VERB"
    )
    for verb, help in about.items():
        command = verbs.add_parser(verb, help=help)
        command.add_argument("uri", help="of an ingest artifact, as `mapsto ingest` printed it")
        if verb == "purge":
            which = command.add_mutually_exclusive_group(required=True)
            which.add_argument("--row", type=int, nargs="+", metavar="ROW_ID", help="rows of this data set")
            which.add_argument("--identity", metavar="NAME", help="all rows of this identity; the URI may be a root")
            which.add_argument(
                "--source", metavar="PREFIX", help="all rows whose source begins so; the URI may be a root"
            )
            command.add_argument("--yes", action="store_true", help="erase; without it, only say what would be done")
        if verb == "show":
            command.add_argument("--row", type=int, metavar="ROW_ID", help="one row: its columns")
            command.add_argument("--output", metavar="FILE", help="of --row: where its image goes, as it is stored")
        if verb == "diff":
            command.add_argument("other", help="the newer one")
        if verb == "export":
            command.add_argument("target", help="a new folder or s3:// prefix")
            command.add_argument("--format", required=True, help="folder, webdataset, coco, yolo, voc or parquet")
            command.add_argument("--split", action="append", default=[], help="may be repeated; default: all")
            command.add_argument("--force", action="store_true", help="replace an earlier export there")
        if verb == "review":
            command.add_argument("--tool", required=True, choices=("label-studio", "cvat"))
            command.add_argument("--output", required=True, metavar="DIR", help="a new folder")
            command.add_argument(
                "--scores", metavar="FILE", help='JSON lines {"row_id": 12, "score": 0.7}, or findings.parquet'
            )
            command.add_argument("--rule", metavar="NAME", help="of findings.parquet: the rule whose rows are reviewed")
            command.add_argument("--lowest", action="store_true", help="the lowest score first; default: the highest")
            command.add_argument("--limit", type=int, metavar="N", help="rows at most; default: all")
            command.add_argument("--mask-names", default="", metavar="A,B,...", help="of the mask's ids, from 0")
            command.add_argument("--force", action="store_true", help="replace an earlier review there")
        if verb == "corrections":
            command.add_argument("file", help="Label Studio's export as JSON, or CVAT's as CVAT for images 1.1")
            command.add_argument("--output", required=True, metavar="FILE", help="the JSON lines to write")
        command.set_defaults(action=_data, verb=verb)
    collect = commands.add_parser("gc", help="remove what lies under a root and no artifact refers to")
    collect.add_argument("root", help="a recipe's `root`")
    collect.add_argument("--yes", action="store_true", help="delete; without it, only list")
    collect.add_argument(
        "--older-than", type=float, default=24.0, metavar="HOURS", help="leave what was written to since; default: 24"
    )
    collect.set_defaults(action=_gc)


def _data(arguments: argparse.Namespace) -> int:
    from .stages import versions

    if arguments.verb in ("export", "review", "corrections"):
        for line in _data_written(arguments):
            print(line)
        return 0
    if arguments.verb == "purge":
        from .stages.purge import Asked, purge

        asked = Asked(tuple(arguments.row or ()), arguments.identity, arguments.source)
        for line in purge(arguments.uri, asked, yes=arguments.yes):
            print(line)
        return 0
    dataset = versions.opened(arguments.uri)
    if arguments.verb == "diff":
        print("\n".join(versions.diff(dataset, versions.opened(arguments.other)).lines()))
        return 0
    if arguments.verb == "show" and (arguments.row is not None or arguments.output):
        if arguments.row is None:
            raise UserError("--output FILE: of --row ROW_ID only")
        lines, image = versions.row(dataset, arguments.row)
        if arguments.output:
            dataset.artifact.storage.write(absolute(arguments.output), image)
        print("\n".join(lines))
        return 0
    if arguments.verb in ("show", "card"):
        from .stages.card import card

        print("\n".join(versions.show(dataset) if arguments.verb == "show" else card(dataset)))
        return 0
    wrong = versions.verify(dataset)
    for line in wrong:
        print(line, file=sys.stderr)
    print(
        f"{arguments.uri}: {f'{len(wrong)} files are not what was written' if wrong else 'every shard is as written'}"
    )
    return 2 if wrong else 0


def _data_written(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.verb == "export":
        from .stages.export import export

        return export(arguments.uri, arguments.target, arguments.format, arguments.split, force=arguments.force)
    from .stages.review import corrections, review

    if arguments.verb == "corrections":
        return corrections(arguments.uri, arguments.file, arguments.output)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: at least 1")
    return review(
        arguments.uri,
        arguments.tool,
        arguments.output,
        arguments.scores,
        arguments.limit,
        lowest=arguments.lowest,
        rule=arguments.rule,
        mask_names=[name.strip() for name in arguments.mask_names.split(",") if name.strip()],
        force=arguments.force,
    )


def _gc(arguments: argparse.Namespace) -> int:
    from .stages.gc import gc

    for line in gc(arguments.root, yes=arguments.yes, older_than=arguments.older_than):
        print(line)
    return 0
