"""Files below a local folder, by name, however many: never all names in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from .disk_index import DiskIndex

HELD = 50_000
"""Entries of a folder that are sorted in memory; those of a larger one on disk."""

Found = tuple[str, int]
"""Name, and size in bytes; -1 of a folder."""


def walk_files(root: str, retry: Callable[[str, Callable[[], Any]], Any]) -> Iterator[tuple[str, int]]:
    """(path, size in bytes) of every file: a folder's files by name, then its folders by name. Symbolic links are not
    followed to folders. `retry(path, action)` runs what may fail."""
    if root and not os.path.isdir(root):
        yield f"{root}/", os.path.getsize(root)
        return
    open_folders = [(root, iter([("", -1)]))]
    while open_folders:
        above, entries = open_folders[-1]
        name, size = next(entries, (None, 0))
        if name is None:
            open_folders.pop()
        elif size >= 0:
            yield f"{above}/{name}", size
        else:
            folder = f"{above}/{name}" if name else above
            open_folders.append((folder, retry(folder, partial(_listed, folder or "/"))))


def _listed(folder: str) -> Iterator[Found]:
    with os.scandir(folder) as scan:
        entries = (_found(entry) for entry in scan)
        held = list(islice(entries, HELD))
        if len(held) < HELD:
            return iter(sorted(held, key=lambda found: (found[1] < 0, found[0])))
        index = DiskIndex()
        for part in (held, entries):
            index.extend((f"{int(size < 0)}{name}", name, size) for name, size in part)
    return ((entry.name, entry.size) for entry in index.by_key())


def _found(entry: os.DirEntry[str]) -> Found:
    if entry.is_dir(follow_symlinks=False):
        return entry.name, -1
    try:
        return entry.name, entry.stat().st_size
    except OSError:  # a link to nothing, or a file that has just gone
        return entry.name, 0
