"""Images and masks in folders of their own, paired by name: CamVid (`train`, `trainannot`), ADE20K (`images/training`,
`annotations/training`), PASCAL (`JPEGImages`, `SegmentationClass`), Penn-Fudan (`PNGImages`, `PedMasks`, whose ids are
instances), and any `images` beside `masks` or `labels` with pictures in them.

A mask of class ids stays as it is (palette indices, not colours). A mask of instance ids becomes a box and a segment
for each instance, of one class, `object`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...core.disk_index import DiskIndex
from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage, join
from .item import SPLIT_NAMES, Reference, is_image
from .look import Look, lines, relative, stem

SETS = "ImageSets/Segmentation"
_TAIL = re.compile(r"(_mask|_labels?|_L|_gt|_seg|_annot|-mask|_GT)$")


@dataclass(frozen=True)
class Pair:
    """Two folders that belong together."""

    images: str
    masks: str
    split: Split | None = None
    instances: bool = False


def recognise(look: Look) -> str | None:
    found = _pairs(look.uri, look.storage, look.top)  # a file has no top
    return f"images in {found[0].images}, masks in {found[0].masks}" if found else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """An image without a mask and a mask without an image are reported. Raises UserError where no pair of folders is."""
    pairs = _pairs(uri, storage, tuple(storage.names(uri)))
    if not pairs:
        raise UserError(
            f"{uri}: no folders of images and masks that belong together (images and masks, x and xannot, ...)"
        )
    for pair in pairs:
        yield from _paired(uri, pair, storage)


def _pairs(uri: str, storage: Storage, top: tuple[str, ...]) -> list[Pair]:
    if "PNGImages" in top and "PedMasks" in top:
        return [Pair("PNGImages", "PedMasks", instances=True)]
    if "JPEGImages" in top and "SegmentationClass" in top:
        return [Pair("JPEGImages", "SegmentationClass")]
    annotated = [name for name in top if f"{name}annot" in top]
    if annotated:
        return [Pair(name, f"{name}annot", SPLIT_NAMES.get(name.lower())) for name in annotated]
    images = next((name for name in ("images", "image", "imgs", "img") if name in top), None)
    masks = next((name for name in ("masks", "mask", "annotations", "labels", "annots", "gt") if name in top), None)
    if images is None or masks is None:
        return []
    inside, beside = storage.glance(join(uri, images)), storage.glance(join(uri, masks))
    splits = [name for name in inside if name in beside and name.lower() in SPLIT_NAMES]
    found = [Pair(f"{images}/{s}", f"{masks}/{s}", SPLIT_NAMES[s.lower()]) for s in splits] or [Pair(images, masks)]
    first = storage.glance(join(uri, found[0].masks))[:5]
    return found if any(name.lower().endswith((".png", ".tif", ".tiff", ".bmp", ".gif")) for name in first) else []


def _paired(uri: str, pair: Pair, storage: Storage) -> Iterator[Reference]:
    """The names of masks and splits are found on disk; those of images come as a stream."""
    splits, masks = _splits(uri, storage) if pair.split is None else DiskIndex(), DiskIndex()
    some_are_split = len(splits) > 0
    found = relative(join(uri, pair.masks), storage)
    masks.extend((pair_key(stem(name)), name, 0) for name, _ in found if is_image(name))
    for name, size in relative(join(uri, pair.images), storage):
        if not is_image(name):
            continue
        at, key = join(uri, pair.images, name), pair_key(stem(name))
        named = [mask for _, mask, _ in masks.of(key)]
        own = [mask for mask in named if _folder(mask) == _folder(name)] or named
        for mask in own:
            masks.use(key, mask)
        listed = splits.of(key)
        split = pair.split or (SPLIT_NAMES[listed[-1].name] if listed else None)
        if some_are_split and split is None:
            continue  # PASCAL: most images are of its other tasks
        if len(own) != 1:
            said = f"{len(own)} masks" if own else "no mask"
            yield Reference(at, at, size=size, split=split, reason=f"{said} of its name in {pair.masks}")
        elif pair.instances:
            columns = {
                "_instances": join(uri, pair.masks, own[0]),
                "box_labels": ["object"],
                "boxes": [],
                "segments": [],
            }
            yield Reference(at, at, size=size, split=split, columns=columns)
        else:
            yield Reference(at, at, size=size, split=split, columns={"mask": join(uri, pair.masks, own[0])})
    for _, name, _ in masks.unused():
        at = join(uri, pair.masks, name)
        yield Reference(at, at, reason=f"a mask of an image that is not in {pair.images}")


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def pair_key(stem: str) -> str:
    """What an image and its mask share, of their names without suffix."""
    return _TAIL.sub("", stem)


def _splits(uri: str, storage: Storage) -> DiskIndex:
    """Image name → the names of its splits."""
    out = DiskIndex()
    for name in storage.names(join(uri, SETS)):
        known = name.removesuffix(".txt").lower()
        if known in SPLIT_NAMES:
            listed = lines(join(uri, SETS, name), storage)
            out.extend((line.split()[0], known, 0) for line in listed if line.strip())
    return out
