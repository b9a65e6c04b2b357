"""Pascal VOC: `JPEGImages/`, `Annotations/<name>.xml`, splits in `ImageSets/Main/{train,val,test}.txt`.

Boxes are 1-based and inclusive there (The PASCAL VOC development kit, 2012, section 4.2); here they are xyxy edges from
0, so the lower corner moves by one pixel; one whose corners coincide has no area. `difficult` comes along, one flag for each box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

from ...core.sample import Split
from ...core.storage import Storage, join
from .item import Reference, is_image
from .look import Look, read_all, relative, stem, text

SETS: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "val"), ("test", "test"))


def recognise(look: Look) -> str | None:
    return "it has JPEGImages and Annotations" if {"JPEGImages", "Annotations"} <= set(look.top) else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """An image without an XML file, and an XML file that cannot be used, are reported with the reason."""
    splits = _splits(uri, storage)
    annotated = {stem(name): name for name, _ in relative(join(uri, "Annotations"), storage) if name.endswith(".xml")}
    masks = {stem(name): name for name in storage.names(join(uri, "SegmentationClass"))}
    images = [(name, size) for name, size in relative(join(uri, "JPEGImages"), storage) if is_image(name)]
    named = Counter(stem(name) for name, _ in images)
    found = [name for name, _ in images if stem(name) in annotated and named[stem(name)] == 1]
    texts = read_all([join(uri, "Annotations", annotated[stem(name)]) for name in found], storage)
    for name, size in images:
        at = join(uri, "JPEGImages", name)
        key = stem(name)
        split = splits.get(key)
        if key not in annotated:
            yield Reference(
                at, at, size=size, split=split, reason="no annotation: Annotations has no XML file of its name"
            )
            continue
        if named[key] > 1:
            yield Reference(at, at, size=size, split=split, reason="several images have this name, and one annotation")
            continue
        try:
            columns = _annotation(next(texts))
        except (ParseError, ValueError, LookupError) as error:  # the last: an unknown encoding
            yield Reference(at, at, size=size, split=split, reason=f"its annotation cannot be read: {error}")
            continue
        if key in masks:
            columns["mask"] = join(uri, "SegmentationClass", masks[key])
        yield Reference(at, at, size=size, split=split, columns=columns)
    present = {stem(name) for name, _ in images}
    for key, name in annotated.items():
        if key not in present:
            where = join(uri, "Annotations", name)
            yield Reference(where, where, reason="an annotation of an image that JPEGImages does not have")


def _splits(uri: str, storage: Storage) -> dict[str, Split]:
    """Image name → split; an image listed in several is where evaluation needs it (test before val before train)."""
    out: dict[str, Split] = {}
    names = storage.names(join(uri, "ImageSets", "Main"))
    for name, split in SETS:
        if f"{name}.txt" in names:
            lines = text(join(uri, "ImageSets", "Main", f"{name}.txt"), storage).splitlines()
            out |= {line.split()[0]: split for line in lines if line.strip()}
    return out


def _annotation(data: bytes) -> dict[str, Any]:
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(data)
    except DefusedXmlException as error:
        raise ValueError(f"refused ({type(error).__name__}): it defines entities") from error
    boxes, labels, difficult = [], [], []
    for thing in root.iter("object"):
        name, box = thing.findtext("name"), thing.find("bndbox")
        if not name or box is None:
            raise ValueError("an object without name or bndbox")
        corners = [box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        if any(value is None for value in corners):
            raise ValueError(f"the bndbox of a {name} lacks a corner")
        x0, y0, x1, y1 = (float(value or 0) for value in corners)
        sound = x1 > x0 and y1 > y0  # a slip of the hand, not a box of one pixel
        boxes.append([x0 - 1, y0 - 1, x1, y1] if sound else [x0, y0, x0, y0])
        labels.append(name.strip())
        difficult.append((thing.findtext("difficult") or "0").strip() == "1")
    return {"boxes": boxes, "box_labels": labels, "difficult": difficult}
