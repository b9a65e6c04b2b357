"""Layouts: how images, labels and splits lie under a URI. One file each, and a line in the table.

A layout is a module with `listing(uri, storage) -> Iterator[Reference]`: a stream of small picklable references, in a
stable order; it reads no image. `reading.py` fetches what references point to.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from ...core.errors import UserError, nearest
from ...core.storage import Storage
from .item import Reference, is_archive, is_image, is_manifest

__all__ = ["LAYOUTS", "Reference", "detect", "listing"]

LAYOUTS = {
    "folder": "mapsto.data.sources.folder",
    "archive": "mapsto.data.sources.archive",
    "manifest": "mapsto.data.sources.manifest",
}

LOOK = 1000
"""Files of a folder that `detect` looks at."""


def detect(uri: str, storage: Storage) -> tuple[str, str]:
    """(layout, why) for a URI. Raises UserError when nothing is there, or nothing says which."""
    if is_manifest(uri):
        return "manifest", "its name ends like a manifest's"
    if is_archive(uri):
        return "archive", "its name ends like an archive's"
    images = archives = manifests = seen = 0
    for name, _ in storage.walk(uri):
        images, archives, manifests = (
            images + is_image(name),
            archives + is_archive(name),
            manifests + is_manifest(name),
        )
        seen += 1
        if seen >= LOOK:
            break
    if seen == 0:
        raise UserError(f"{uri}: the data set is empty (no file below it)")
    if archives and not images:
        return "archive", f"archives among its files: {archives}, images: none"
    if images or not manifests:
        return "folder", f"{images} of its first {seen} files are images by name"
    raise UserError(f"{uri}: no images, but manifests ({manifests}): name one of them as `source`")


def listing(layout: str, uri: str, storage: Storage, work: str) -> Iterator[Reference]:
    """The references of a source. `work`: a folder that a layout may put expanded archives in."""
    if layout not in LAYOUTS:
        raise UserError(f"layout '{layout}' is unknown{nearest(layout, LAYOUTS)}")
    module = import_module(LAYOUTS[layout])
    return module.listing(uri, storage, work) if layout == "archive" else module.listing(uri, storage)
