"""Label Studio: rows as JSON tasks with pre-annotations, and its JSON export read back.

Classes are `choices`, boxes `rectanglelabels` in percent of the image, masks `brushlabels`, a region for each id but 0.
Sources: https://labelstud.io/guide/task_format, https://labelstud.io/guide/predictions, https://labelstud.io/tags/brushlabels
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from ...core.errors import UserError
from . import brush
from .marks import Answer, Marks, Reviewed, Task, mask_label, named, painted, regions

IMAGES = "/data/local-files/?d=images/"
"""Where its local storage serves them, with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT at the review's folder."""


def config(classes: Sequence[str], columns: Iterable[str], mask_ids: Iterable[int], names: Sequence[str] = ()) -> str:
    """The labelling interface for a data set with these columns. `names`: of the mask's ids."""
    root, have = Element("View"), set(columns)
    SubElement(root, "Image", name="image", value="$image")
    if "label" in have:
        choices = SubElement(root, "Choices", name="label", toName="image", choice="single")
        for name in classes:
            SubElement(choices, "Choice", value=name)
    for column, kind, labels in (
        ("boxes", "RectangleLabels", list(classes)),
        ("mask", "BrushLabels", [mask_label(k, names) for k in sorted(mask_ids)]),
    ):
        if column in have:
            group = SubElement(root, kind, name=column, toName="image")
            for name in labels:
                SubElement(group, "Label", value=name)
    indent(root)
    return tostring(root, encoding="unicode")


def write(task: Task, names: Sequence[str] = ()) -> dict[str, Any]:
    """One task with what is said of it as a prediction. `names`: of the mask's ids."""
    size = {"original_width": task.width, "original_height": task.height, "image_rotation": 0}
    results: list[dict[str, Any]] = []
    if task.marks.label is not None:
        results.append(_result("label", "choices", "label", {"choices": [task.marks.label]}))
    scale = np.array([task.width, task.height], np.float64)
    for k, (box, label) in enumerate(zip(task.marks.boxes, task.marks.box_labels, strict=True)):
        (x, y), (width, height) = box[:2] / scale * 100, (box[2:] - box[:2]) / scale * 100
        place = {"x": float(x), "y": float(y), "width": float(width), "height": float(height), "rotation": 0}
        results.append(_result(f"box-{k}", "rectanglelabels", "boxes", {**place, "rectanglelabels": [label]}) | size)
    for number, pixels in regions(task.marks.mask):
        value = {"format": "rle", "rle": brush.encode(pixels), "brushlabels": [mask_label(number, names)]}
        results.append(_result(f"mask-{number}", "brushlabels", "mask", value) | size)
    data: dict[str, Any] = {"image": IMAGES + task.name, "row_id": task.row_id, "content": task.content[:8]}
    data |= {"width": task.width, "height": task.height} | ({} if task.score is None else {"score": task.score})
    return {"data": data, "predictions": [{"model_version": "data set", "result": results}]}


def _result(key: str, kind: str, column: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": key, "type": kind, "from_name": column, "to_name": "image", "value": value}


def read(data: bytes, where: str) -> Reviewed:
    """Label Studio's export as `JSON`. Raises UserError, with the task, for what is none of it, rotated boxes and broken
    masks. Of several annotations the newest counts; tasks without one, and regions of other kinds, are counted."""
    try:
        tasks = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(tasks, list):
        raise UserError(f"{where}: not a list of tasks; export them from Label Studio as JSON")
    out = Reviewed()
    for number, task in enumerate(tasks, 1):
        at = f"{where}: task {number}"
        try:
            _task(task, at, out)
        except UserError as error:
            raise UserError(f"{at}: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise UserError(f"{at}: not as Label Studio's export as JSON has it (not JSON-MIN): {told}") from error
    return out


def _task(task: Mapping[str, Any], at: str, out: Reviewed) -> None:
    given = task["data"]
    row_id, content = (given["row_id"], given["content"]) if "row_id" in given else named(given["image"])
    width, height = int(given["width"]), int(given["height"])
    annotations = [each for each in task["annotations"] if not each.get("was_cancelled")]
    if not annotations:
        out.passed_over[
            "tasks without an annotation" if not task["annotations"] else "tasks skipped by the person"
        ] += 1
        return
    if len(annotations) > 1:
        out.passed_over["older annotations of a task that has several"] += len(annotations) - 1
    newest = max(
        annotations, key=lambda each: (str(each.get("updated_at") or each.get("created_at") or ""), each.get("id") or 0)
    )
    marks = _marks(newest["result"], height, width, out)
    out.answers.append(Answer(int(row_id), str(content), width, height, marks, at))


def _marks(results: Sequence[Mapping[str, Any]], height: int, width: int, out: Reviewed) -> Marks:
    labels: list[str] = []
    boxes, box_labels, layers = [], [], []
    for result in results:
        kind = result["type"]
        if kind not in ("choices", "rectanglelabels", "brushlabels"):
            out.passed_over[f"regions of the kind {kind}"] += 1
            continue
        value = result["value"]
        names = [str(name) for name in value[kind]]
        if kind == "choices":
            labels += names
            continue
        size = result.get("original_width", width), result.get("original_height", height)
        if size != (width, height):
            raise UserError(f"its image is {size[0]}x{size[1]} there, {width}x{height} in the data set")
        if value.get("rotation") or result.get("image_rotation"):
            raise UserError("a rotated box or image; boxes are upright here: draw it again without rotation")
        if len(names) != 1:
            raise UserError(f"a region of {len(names)} classes; each has one")
        if kind == "rectanglelabels":
            x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
            boxes.append([x * width / 100, y * height / 100, (x + w) * width / 100, (y + h) * height / 100])
            box_labels.append(names[0])
        else:
            layers.append((names[0], brush.decode(value["rle"], height, width)))
    if len(labels) > 1:
        raise UserError(f"{len(labels)} classes chosen ({', '.join(labels)}); an image has one")
    found = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(found).all():
        raise UserError("a box whose place is no finite number")
    shapes = (None,) * len(boxes)
    return Marks(labels[0] if labels else None, found, tuple(box_labels), shapes, painted(layers, height, width))
