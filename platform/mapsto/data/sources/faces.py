"""Faces by person: a folder per person (below `images/`, or not) beside a list of pairs (`pairs.txt`, `pairsDevTest.txt`;
http://vis-www.cs.umass.edu/lfw/README.txt). The person's name is both label and identity.

A set of people without a list of pairs looks like any image folder: say `layout: faces` for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...core.storage import Storage, join
from . import folder
from .item import Reference
from .look import Look


def recognise(look: Look) -> str | None:
    lists = [name for name in look.top if name.startswith("pairs") and name.endswith(".txt")]
    return f"it has a list of pairs ({lists[0]})" if lists else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    root = join(uri, "images") if storage.glance(join(uri, "images")) else uri
    for reference in folder.listing(root, storage):
        if root == uri and reference.label is None and reference.uri.endswith(".txt"):
            continue  # the lists themselves
        if reference.label is None:
            yield replace(reference, reason="no person: it lies in no folder")
        else:
            yield replace(reference, columns={"identity": reference.label})
