"""Image folders: `<class>/x.jpg`, below `train/`, `val/`, `test/` or not, and below folders that enclose them all; a flat
folder has no labels, or WordNet ids. A source may be a single image, too."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.storage import Storage, join
from .enclosing import below
from .item import EXPORTED, Reference, Told, hidden, is_image, is_manifest
from .look import Look, relative

SETTINGS = ("told",)


def recognise(look: Look) -> str | None:
    if is_image(look.uri):
        return "it is an image by name"
    images = sum(map(is_image, look.names))
    if images or not any(map(is_manifest, look.names)):
        beside = [name for name in look.names if is_manifest(name) and "/" not in name]
        unread = f"; {beside[0]} beside them is not read: name it as the source to take what it says" if beside else ""
        return f"{images} of its first {len(look.names)} files are images by name{unread}"
    return None


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """Every file below the folder but hidden ones and an export's report, images by name or not: what is no image is
    reported, not skipped."""
    if is_image(uri):
        yield Reference(uri, uri)
        return
    found = ((name, join(uri, name), size) for name, size in relative(uri, storage))
    seen = ((name, Reference(at, at, size=size)) for name, at, size in found if not hidden(name) and name != EXPORTED)
    yield from below(seen, told)
