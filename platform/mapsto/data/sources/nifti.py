"""NIfTI volumes (`.nii`, `.nii.gz`) in folders as of images: each slice from foot to head is an image, `volume.nii.gz#k`.

`identity` is the volume's path: `group: identity` keeps each volume's slices in one split. `nifti.py` makes the PNG.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...core.errors import UserError
from ...core.storage import Storage
from ..nifti import HEAD_BYTES, slices
from .enclosing import below
from .item import Reference, Told, is_image, is_volume
from .look import Look, files

SETTINGS = ("told",)


def recognise(look: Look) -> str | None:
    if is_volume(look.uri):
        return "its name ends like a volume's"
    volumes = sum(map(is_volume, look.names))
    return (
        f"volumes among its files: {volumes}, images: none" if volumes and not any(map(is_image, look.names)) else None
    )


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """Reads each volume's header. One that cannot be used is one reference with the reason, as is any other file."""
    yield from below(_found(uri, storage), told, is_volume)


def _found(uri: str, storage: Storage) -> Iterator[tuple[str, Reference]]:
    found = 0
    for at, name in files(uri, storage, is_volume(uri)):
        if not is_volume(name):
            yield name, Reference(at, at, reason="not a volume (.nii, .nii.gz)")
            continue
        found += 1
        head = storage.read_range(at, 0, HEAD_BYTES)
        try:
            count, size = slices(head)
        except UserError as error:
            yield name, Reference(at, at, reason=str(error))
            continue
        for k in range(count):
            yield name, Reference(f"{at}#{k}", at, "slice", k, size, columns={"identity": name})
    if not found:
        raise UserError(f"{uri}: no volume (.nii, .nii.gz) below it")
