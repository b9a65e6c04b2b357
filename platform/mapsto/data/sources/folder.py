"""Image folders: `<class>/x.jpg`, below `train/`, `val/`, `test/` or not; a flat folder has no labels, or WordNet ids."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.storage import Storage
from .item import Reference, hidden, placed


def listing(uri: str, storage: Storage) -> Iterator[Reference]:
    """Every file below the folder but hidden ones, images by name or not: what is no image is reported, not skipped."""
    root = uri.rstrip("/") + "/"
    for name, size in storage.walk(uri):
        relative = name[len(root) :] if name.startswith(root) else _below(name, root)
        if not hidden(relative):
            label, split = placed(relative)
            yield Reference(name, name, size=size, label=label, split=split)


def _below(name: str, root: str) -> str:
    """The relative path where the store spells its root otherwise (`s3a://`, a symbolic link)."""
    bare = root.split("://", 1)[-1]
    return name.split("://", 1)[-1].removeprefix(bare)
