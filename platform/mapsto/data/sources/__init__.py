"""Layouts: how images, labels and splits lie under a URI. One file each, and a line in the table.

A layout is a module with `recognise(look) -> str | None`, why it thinks that a source is its own, and
`listing(uri, storage, work) -> Iterator[Reference]`: a stream of small picklable references, in a stable order; it
reads no image. `work` is a folder for what has to be written out plain. A layout's `SETTINGS` name what of a recipe's
data set it wants besides; `told` among them, what it may say of the source as a whole. `reading.py` fetches what references point to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from ...core.errors import UserError, nearest
from ...core.storage import Storage
from .item import Reference, Told, is_manifest, legible
from .look import Look

__all__ = ["LAYOUTS", "Reference", "Told", "detect", "listing"]

LAYOUTS = {
    name: f"mapsto.data.sources.{name}"
    for name in (
        "manifest",
        "imagenet",
        "coco",
        "voc",
        "yolo",
        "pairs",
        "raw",
        "lmdb",
        "nifti",
        "video",
        "faces",
        "webdataset",
        "archive",
        "folder",
    )
}
"""In the order in which they are asked whether a source is theirs: the particular ones first."""


def detect(uri: str, storage: Storage) -> tuple[str, str]:
    """(layout, why) for a URI. Raises UserError when nothing is there, or nothing says which."""
    look = Look(uri, storage)
    if not look.one and not look.names:
        raise UserError(f"{uri}: the data set is empty (no file below it)")
    for name, module in LAYOUTS.items():
        if why := import_module(module).recognise(look):
            return name, why
    if manifests := sum(map(is_manifest, look.names)):
        raise UserError(
            f"{uri}: no images, but manifests ({manifests}): name one of them as `source`, or the folder of Parquet files"
        )
    raise UserError(f"{uri}: no layout is known for it; the layouts are {', '.join(LAYOUTS)}")


def listing(
    layout: str,
    uri: str,
    storage: Storage,
    work: str,
    settings: Mapping[str, Any] | None = None,
    told: Told | None = None,
) -> Iterator[Reference]:
    """The references of a source. `work`: a folder that a layout may put expanded files in. `settings`: the recipe's. `told`: gets what
    the layout says of the source as a whole, while it is listed."""
    if layout not in LAYOUTS:
        raise UserError(f"layout '{layout}' is unknown{nearest(layout, LAYOUTS)}")
    module = import_module(LAYOUTS[layout])
    given = {**(settings or {}), "told": Told() if told is None else told}
    own = {name: given[name] for name in getattr(module, "SETTINGS", ()) if name in given}
    return map(legible, module.listing(uri, storage, work, **own))
