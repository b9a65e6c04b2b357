"""Pascal VOC: `JPEGImages/`, `Annotations/<name>.xml`, splits in `ImageSets/Main/{train,val,test}.txt`.

Boxes are 1-based and inclusive there (The PASCAL VOC development kit, 2012, section 4.2); here they are xyxy edges from
0, so the lower corner moves by one pixel; one whose corners coincide has no area. `difficult` comes along, one flag for each box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import ParseError

from ...core.disk_index import DiskIndex, Entry
from ...core.sample import Split
from ...core.storage import Storage, join
from .item import Reference, is_image
from .look import Look, lines, parts, read_all, relative, stem

SETS: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "val"), ("test", "test"))


def recognise(look: Look) -> str | None:
    return "it has JPEGImages and Annotations" if {"JPEGImages", "Annotations"} <= set(look.top) else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """An image without an XML file, and an XML file that cannot be used, are reported with the reason. The names of images, annotations,
    masks and splits are joined on disk."""
    splits, annotated, masks, images = _splits(uri, storage), DiskIndex(), DiskIndex(), DiskIndex()
    xml = (name for name, _ in relative(join(uri, "Annotations"), storage) if name.endswith(".xml"))
    annotated.extend((stem(name), name, 0) for name in xml)
    if storage.glance(join(uri, "SegmentationClass")):
        masks.extend((stem(name), name, 0) for name, _ in relative(join(uri, "SegmentationClass"), storage))
    found = relative(join(uri, "JPEGImages"), storage)
    images.extend((stem(name), name, size) for name, size in found if is_image(name))
    for part in parts(images):
        xmls = {key: known[-1].name for key, _, _ in part if (known := annotated.of(key))}
        single = {key for key in xmls if images.count(key) == 1}
        texts = read_all([join(uri, "Annotations", xmls[key]) for key, _, _ in part if key in single], storage)
        for key, name, size in part:
            annotated.use(key)
            reference = _reference(join(uri, "JPEGImages", name), size, splits.of(key))
            if key not in xmls:
                yield replace(reference, reason="no annotation: Annotations has no XML file of its name")
                continue
            if key not in single:
                yield replace(reference, reason="several images have this name, and one annotation")
                continue
            try:
                columns = _annotation(next(texts))
            except (ParseError, ValueError, LookupError) as error:  # the last: an unknown encoding
                yield replace(reference, reason=f"its annotation cannot be read: {error}")
                continue
            if own := masks.of(key):
                columns["mask"] = join(uri, "SegmentationClass", own[-1].name)
            yield replace(reference, columns=columns)
    for _, name, _ in annotated.unused():
        where = join(uri, "Annotations", name)
        yield Reference(where, where, reason="an annotation of an image that JPEGImages does not have")


def _reference(at: str, size: int, listed: list[Entry]) -> Reference:
    """`listed`: the splits that name the image; of several it is where evaluation needs it (test before val before train)."""
    return Reference(at, at, size=size, split=SETS[max(entry.size for entry in listed)][1] if listed else None)


def _splits(uri: str, storage: Storage) -> DiskIndex:
    """Image name → the numbers of its splits in `SETS`, as sizes."""
    out = DiskIndex()
    names = storage.names(join(uri, "ImageSets", "Main"))
    for number, (name, _) in enumerate(SETS):
        if f"{name}.txt" in names:
            listed = lines(join(uri, "ImageSets", "Main", f"{name}.txt"), storage)
            out.extend((line.split()[0], "", number) for line in listed if line.strip())
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
    frame = [_side(root.findtext(f"size/{side}")) for side in ("width", "height")]
    told = {"_frame": frame} if all(frame) else {}
    return {"boxes": boxes, "box_labels": labels, "difficult": difficult} | told


def _side(text: str | None) -> int:
    """In pixels; 0 where it is not told, or no number."""
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        return 0
