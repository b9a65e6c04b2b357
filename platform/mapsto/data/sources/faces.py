"""Faces by person: a folder per person beside a list of pairs (`pairs.txt`, `pairsDevTest.txt`;
http://vis-www.cs.umass.edu/lfw/README.txt), or below a folder beside it (`images/`, `lfw/`, `lfw_funneled/`, as scikit-learn and torchvision
keep LFW). The first folder below those that enclose all pictures is a person, both label and identity, whatever folders lie in it (YouTube
Faces has one for each video; http://www.cs.tau.ac.il/~wolf/ytfaces/).

A set of people without a list of pairs looks like any image folder: say `layout: faces` for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...core.sample import Split
from ...core.storage import Storage, join
from .enclosing import Shared
from .item import EXPORTED, SPLIT_NAMES, Reference, hidden, is_image
from .look import Look, relative

LISTS = re.compile(r"(pairs|people).*\.txt$")
ROOTS = ("images",)
"""Folders of people's folders that are no person themselves, by their names."""


def recognise(look: Look) -> str | None:
    lists = [name for name in look.top if name.startswith("pairs") and name.endswith(".txt")]
    return f"it has a list of pairs ({lists[0]})" if lists else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Every file but hidden ones and lists of pairs and people; one that lies in no person's folder is reported."""
    home = _home(uri, storage)
    for name, size in relative(uri, storage):
        *folders, last = name.split("/")
        if hidden(name) or name == EXPORTED or LISTS.match(last) or (not folders and last.endswith(".txt")):
            continue
        at = join(uri, name)
        person, split = _person(folders[len(home) :] if folders[: len(home)] == home else folders)
        if person is None:
            yield Reference(at, at, size=size, split=split, reason="no person: it lies in no folder of one")
        else:
            yield Reference(at, at, size=size, label=person, split=split, columns={"identity": person})


def _home(uri: str, storage: Storage) -> list[str]:
    """The folders that enclose those of all people; pictures that lie beside a person's folder are no reason against it."""
    shared = Shared()
    for name, _ in relative(uri, storage):
        if is_image(name) and "/" in name and not hidden(name):
            shared.see(name)
            if not shared.folders:
                return []
    folders = shared.folders or []
    return folders if shared.most > len(folders) else folders[:-1]


def _person(folders: list[str]) -> tuple[str | None, Split | None]:
    split: Split | None = None
    while folders and (folders[0] in ROOTS or (split is None and folders[0].lower() in SPLIT_NAMES)):
        split = split or SPLIT_NAMES.get(folders[0].lower())
        folders = folders[1:]
    return (folders[0] if folders else None), split
