"""Faces by person: a folder per person beside a list of pairs (`pairs.txt`, `pairsDevTest.txt`;
http://vis-www.cs.umass.edu/lfw/README.txt), or below a folder beside it (`images/`, `lfw/`, `lfw_funneled/`, as scikit-learn and torchvision
keep LFW). The folder that a picture lies in is its person: both label and identity.

A set of people without a list of pairs looks like any image folder: say `layout: faces` for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...core.storage import Storage, join
from .item import EXPORTED, SPLIT_NAMES, Reference, hidden
from .look import Look, relative

LISTS = re.compile(r"(pairs|people).*\.txt$")
ROOTS = ("images",)
"""Folders of people's folders that are no person themselves, by their names."""


def recognise(look: Look) -> str | None:
    lists = [name for name in look.top if name.startswith("pairs") and name.endswith(".txt")]
    return f"it has a list of pairs ({lists[0]})" if lists else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Every file but hidden ones and lists of pairs and people; one that lies in no person's folder is reported."""
    for name, size in relative(uri, storage):
        *folders, last = name.split("/")
        if hidden(name) or name == EXPORTED or LISTS.match(last) or (not folders and last.endswith(".txt")):
            continue
        at = join(uri, name)
        split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
        if not folders or folders[-1] in ROOTS or (split and len(folders) == 1):
            yield Reference(at, at, size=size, split=split, reason="no person: it lies in no folder of one")
        else:
            person = folders[-1]
            yield Reference(at, at, size=size, label=person, split=split, columns={"identity": person})
