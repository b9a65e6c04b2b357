"""A row with everything on it, and what the annotation tools make of it, for the tests of reviews."""

from __future__ import annotations

import json

import numpy as np

from mapsto.core.codecs import encode
from mapsto.curate.annotation import cvat

CLASSES = ("cat", "dog", 'q"<&>')
HEIGHT, WIDTH = 30, 41
COLUMNS = ("label", "boxes", "box_labels", "segments", "mask")
SHA = "ab12cd34" + "0" * 56


def row(rng: np.random.Generator, *, semantic: bool = True, **more):
    """A row with everything: boxes at fractions of pixels, a polygon of two parts, a RLE."""
    corners = np.sort(rng.uniform(0, 1, (4, 2, 2)), axis=1) * [WIDTH, HEIGHT]
    boxes = corners.reshape(4, 4).astype(np.float32).tolist()
    pixels = rng.random((HEIGHT, WIDTH)) < 0.3
    runs = {
        "size": [HEIGHT, WIDTH],
        "counts": np.diff([0, *np.flatnonzero(np.diff(pixels.T.ravel())) + 1, pixels.size]).tolist(),
    }
    if pixels[0, 0]:
        runs["counts"] = [0, *runs["counts"]]
    segments = [
        "[]",
        json.dumps([[1.25, 2, 9, 2, 9, 7.5]]),
        json.dumps([[1, 1, 5, 1, 5, 5], [20, 9, 30, 9, 30, 20.125]]),
        json.dumps(runs),
    ]
    out = {
        "row_id": 12, "content_sha256": SHA, "width": WIDTH, "height": HEIGHT, "label": 2, "boxes": boxes,
        "box_labels": [0, 1, 2, 0], "segments": segments,
    }  # fmt: skip
    if semantic:
        ids = rng.choice([0, 1, 7, 255], (HEIGHT, WIDTH)).astype(np.uint8)
        out["mask"] = encode(ids, "png")
    return out | more


def studio(tasks: list[dict], change=lambda result: result) -> bytes:
    """What Label Studio exports when a person has taken the predictions over, changed or not."""
    return json.dumps(
        [
            {
                "id": k,
                "data": each["data"],
                "annotations": [{"id": k, "result": change(each["predictions"][0]["result"])}],
            }
            for k, each in enumerate(tasks, 1)
        ]
    ).encode()


def one(**change) -> bytes:
    data = {"row_id": 12, "content": "ab12cd34", "width": WIDTH, "height": HEIGHT}
    result = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["cat"]}}
    where = change.pop("where", "value")
    (result if where == "result" else result["value"] if where == "value" else data).update(change)
    return json.dumps([{"data": data, "annotations": [{"id": 1, "result": [result]}]}]).encode()


def cvat_file(each, count: int = 1) -> bytes:
    return "".join(
        cvat.whole(cvat.labels(CLASSES, COLUMNS, [1, 7, 255]), [cvat.write(each, k) for k in range(count)])
    ).encode()
