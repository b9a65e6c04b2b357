"""Image folders: `<class>/x.jpg`, below `train/`, `val/`, `test/` or not; a flat folder has no labels, or WordNet ids. A
source may be a single image, too."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.storage import Storage, join
from .item import EXPORTED, Reference, hidden, is_image, is_manifest, placed
from .look import Look, relative


def recognise(look: Look) -> str | None:
    if is_image(look.uri):
        return "it is an image by name"
    images = sum(map(is_image, look.names))
    if images or not any(map(is_manifest, look.names)):
        beside = [name for name in look.names if is_manifest(name) and "/" not in name]
        unread = f"; {beside[0]} beside them is not read: name it as the source to take what it says" if beside else ""
        return f"{images} of its first {len(look.names)} files are images by name{unread}"
    return None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Every file below the folder but hidden ones and an export's report, images by name or not: what is no image is
    reported, not skipped."""
    if is_image(uri):
        yield Reference(uri, uri)
        return
    for name, size in relative(uri, storage):
        if not hidden(name) and name != EXPORTED:
            label, split = placed(name)
            at = join(uri, name)
            yield Reference(at, at, size=size, label=label, split=split)
