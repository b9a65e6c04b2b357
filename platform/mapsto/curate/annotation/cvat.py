"""CVAT: rows as "CVAT for images 1.1" XML, and its export read back.

A class is a `tag`, an instance a `box`, its `polygon`s (several in one group) or its `mask`; a mask of ids is a `mask` for
each id but 0. A mask's run lengths go row by row within its rectangle, 0 first.
Source: https://docs.cvat.ai/docs/dataset_management/formats/xml_format/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import numpy as np

from ...core.errors import UserError
from ...core.runs import from_runs, to_runs
from .marks import Answer, Marks, Reviewed, Shape, Task, bounds, mask_label, named, painted, regions

KINDS = ("tag", "box", "polygon", "mask")


def labels(
    classes: Sequence[str], columns: Iterable[str], mask_ids: Iterable[int], names: Sequence[str] = ()
) -> list[str]:
    """The labels that a CVAT task needs. `names`: of the mask's ids."""
    have = set(columns)
    out = list(classes) if {"label", "boxes"} & have else []
    return out + ([mask_label(k, names) for k in sorted(mask_ids)] if "mask" in have else [])


def head(names: Sequence[str], count: int) -> str:
    """The XML before the images; `</annotations>` ends it."""
    meta = Element("meta")
    job = SubElement(meta, "task")
    for key, value in (("name", "mapsto review"), ("size", str(count)), ("mode", "annotation")):
        SubElement(job, key).text = value
    group = SubElement(job, "labels")
    for name in names:
        label = SubElement(group, "label")
        SubElement(label, "name").text = name
        SubElement(label, "attributes")
    text = tostring(meta, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n{text}\n'


def write(task: Task, place: int, names: Sequence[str] = ()) -> str:
    """One `image` element. `place`: in the queue; `names`: of the mask's ids."""
    size = {"width": str(task.width), "height": str(task.height)}
    image = Element("image", {"id": str(place), "name": task.name, **size})
    marks = task.marks
    if marks.label is not None:
        SubElement(image, "tag", label=marks.label, source="manual")
    semantic = marks.mask is not None
    for k, (box, label, shape) in enumerate(zip(marks.boxes, marks.box_labels, marks.shapes, strict=True), 1):
        common = {"label": label, "source": "manual", "occluded": "0", "z_order": "0"}
        if isinstance(shape, tuple):
            group = {"group_id": str(k)} if len(shape) > 1 else {}
            for polygon in shape:
                points = ";".join(f"{_number(x)},{_number(y)}" for x, y in polygon)
                SubElement(image, "polygon", common | group | {"points": points})
        elif shape is not None and not semantic:
            SubElement(image, "mask", common | _cut(shape))
        else:
            corners = zip(("xtl", "ytl", "xbr", "ybr"), map(_number, box), strict=True)
            SubElement(image, "box", common | dict(corners))
    for number, pixels in regions(marks.mask):
        common = {"label": mask_label(number, names), "source": "manual", "occluded": "0", "z_order": "0"}
        SubElement(image, "mask", common | _cut(pixels))
    return tostring(image, encoding="unicode") + "\n"


def _number(value: float) -> str:
    return repr(float(value))


def _cut(pixels: np.ndarray) -> dict[str, str]:
    x0, y0, x1, y1 = map(int, bounds(pixels))
    runs = to_runs(pixels[y0:y1, x0:x1].ravel())
    place = {"left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0}
    return {"rle": ", ".join(map(str, runs))} | {key: str(value) for key, value in place.items()}


def read(data: bytes, where: str, *, semantic: bool) -> Reviewed:
    """CVAT's export as `CVAT for images 1.1`. `semantic`: its masks are of class ids, not of instances. Raises UserError,
    with the image, for what is none of it, XML that defines entities, rotated boxes and broken masks. Shapes of other
    kinds are counted."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(data)
    except DefusedXmlException as error:
        raise UserError(f"{where}: refused ({type(error).__name__}): it defines entities") from error
    except (ParseError, ValueError) as error:
        raise UserError(f"{where}: not XML: {error}") from error
    if root.tag != "annotations" or root.find("track") is not None or root.find("image") is None:
        raise UserError(f"{where}: not CVAT's annotations of images; export them as 'CVAT for images 1.1'")
    out = Reviewed()
    for image in root.iter("image"):
        at = f"{where}: image '{image.get('name')}'"
        try:
            out.answers.append(_answer(image, at, semantic, out))
        except UserError as error:
            raise UserError(f"{at}: {error}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{at}: not as CVAT for images 1.1 has it: {type(error).__name__}: {error}") from error
    return out


def _answer(image: Element, at: str, semantic: bool, out: Reviewed) -> Answer:
    row_id, content = named(image.get("name") or "")
    width, height = int(image.attrib["width"]), int(image.attrib["height"])
    tags: list[str] = []
    layers: list[tuple[int, str, np.ndarray]] = []
    instances: dict[Any, tuple[str, Any, Shape]] = {}
    for k, shape in enumerate(image):
        if shape.tag not in KINDS:
            out.passed_over[f"shapes of the kind {shape.tag}"] += 1
            continue
        label = shape.attrib["label"]
        if float(shape.get("rotation") or 0):
            raise UserError("a rotated box; boxes are upright here: draw it again without rotation")
        if shape.tag == "tag":
            tags.append(label)
        elif shape.tag == "box":
            instances[k] = label, [float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")], None
        elif shape.tag == "mask":
            pixels = _whole(shape.attrib, height, width)
            if semantic:
                layers.append((int(shape.get("z_order") or 0), label, pixels))
            else:
                instances[k] = label, None, pixels
        else:
            _join(instances, k, label, shape)
    if len(tags) > 1:
        raise UserError(f"{len(tags)} tags ({', '.join(tags)}); an image has one class")
    layers.sort(key=lambda layer: layer[0])
    marks = _marks(tags, list(instances.values()), painted([layer[1:] for layer in layers], height, width))
    return Answer(row_id, content, width, height, marks, at)


def _join(instances: dict[Any, tuple[str, Any, Shape]], k: int, label: str, shape: Element) -> None:
    """Polygons of one group and one class are one instance."""
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    polygon = np.array([[float(x), float(y)] for x, y in pairs])
    if len(polygon) < 3:
        raise UserError(f"a polygon of {len(polygon)} points; they have three at least")
    group = int(shape.get("group_id") or 0)
    key = (group, label) if group else k
    _, _, before = instances.get(key, (label, None, ()))
    assert isinstance(before, tuple)
    instances[key] = label, None, (*before, polygon)


def _marks(tags: list[str], instances: Sequence[tuple[str, Any, Shape]], mask: np.ndarray) -> Marks:
    rows = [box if box is not None else bounds(shape).tolist() for _, box, shape in instances]
    boxes = np.asarray(rows, np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise UserError("a shape whose place is no finite number")
    names, shapes = tuple(label for label, _, _ in instances), tuple(shape for _, _, shape in instances)
    return Marks(tags[0] if tags else None, boxes, names, shapes, mask)


def _whole(place: Mapping[str, str], height: int, width: int) -> np.ndarray:
    """A mask in its rectangle as one of the whole image."""
    x, y, w, h = (int(place[key]) for key in ("left", "top", "width", "height"))
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise UserError(f"a mask's rectangle (left {x}, top {y}, {w}x{h}) leaves the image of {width}x{height}")
    part = from_runs([int(run) for run in place["rle"].split(",")], w * h).reshape(h, w)
    if not part.any():
        raise UserError("a mask without a pixel")
    pixels = np.zeros((height, width), bool)
    pixels[y : y + h, x : x + w] = part
    return pixels


def whole(names: Sequence[str], images: Sequence[str]) -> Iterator[str]:
    """The file in parts, from the `image` elements."""
    yield head(names, len(images))
    yield from images
    yield "</annotations>\n"
