"""HTTP bodies ↔ requests and predictions, in the terms of a task's signature. No server in here, and no model."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ..core import codecs
from ..core.errors import UserError, nearest
from ..core.sample import Prediction
from ..core.task import Field, Signature

Request: TypeAlias = dict[str, Any]
"""Input name → value, as `task.prepare` takes it: images as encoded bytes."""

PICTURES = ("image", "mask")
"""Kinds of inputs that are encoded images."""

MAX_INSTANCES = 256
"""Requests in one body."""

RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Content types taken for one encoded image, besides image/*: what `curl --data-binary` and bare clients send."""


def within_limits(request: Request) -> Request:
    """The request itself. Raises UserError for an encoded picture of more than 100 megapixels, before a pixel is decoded."""
    for value in request.values():
        if isinstance(value, bytes) and value:
            codecs.header(value, codecs.MAX_PIXELS)
    return request


def parse(content_type: str, body: bytes, signature: Signature) -> list[Request]:
    """The requests in a body: one encoded image, multipart/form-data, or JSON `{"instances": [{...}, ...]}`.

    Raises UserError in one line for what does not fit the signature.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        requests = _json(body, signature)
    elif kind == "multipart/form-data":
        requests = _multipart(content_type, body, signature)
    elif kind.startswith("image/") or kind in RAW:
        requests = [_raw(body, signature)]
    else:
        raise UserError(
            f"content type '{kind}' is not understood; send image/*, multipart/form-data or application/json"
        )
    if len(requests) > MAX_INSTANCES:
        raise UserError(f"{len(requests)} instances in one request; at most {MAX_INSTANCES}, send several requests")
    return requests


def encode(predictions: Iterable[Prediction]) -> bytes:
    """`{"predictions": [...]}`; masks and pictures become `{"b64": <base64 of a PNG>, "content_type": "image/png"}`."""
    return json.dumps(
        {"predictions": [plain(p) for p in predictions]}, ensure_ascii=False, separators=(",", ":")
    ).encode()


def picture(prediction: Prediction) -> bytes | None:
    """The first mask or picture of a prediction as PNG; None when it has none."""
    return next((codecs.encode(value, "png") for value in prediction.values() if is_picture(value)), None)


def is_picture(value: Any) -> bool:
    """H×W or H×W×3 uint8: a mask of class ids, or RGB."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3))
    )


def describe(signature: Signature) -> dict[str, Any]:
    """The signature for `GET /v1/models/{name}`."""
    return {
        side: [
            {"name": f.name, "kind": f.kind, "required": f.required, **({"about": f.about} if f.about else {})}
            for f in fields
        ]
        for side, fields in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def plain(value: Any) -> Any:
    """A prediction's value as JSON can hold it: pictures inline, what is not a finite number as null."""
    if is_picture(value):
        return {"b64": base64.b64encode(codecs.encode(value, "png")).decode(), "content_type": "image/png"}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _raw(body: bytes, signature: Signature) -> Request:
    images = [f.name for f in signature.inputs if f.kind == "image"]
    others = [f.name for f in signature.inputs if f.name not in images[:1] and f.required]
    if not images or others:
        example = ", ".join(f'"{f.name}": ...' for f in signature.inputs)
        raise UserError(
            f'this model does not take one bare image; send application/json {{"instances": [{{{example}}}]}}'
        )
    if not body:
        raise UserError("the body is empty; send an encoded image")
    return {images[0]: body}


def _json(body: bytes, signature: Signature) -> list[Request]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise UserError(f"the body is not valid JSON: {error}") from error
    instances = document.get("instances") if isinstance(document, dict) else None
    if not isinstance(instances, list) or not instances or not all(isinstance(one, dict) for one in instances):
        raise UserError('the JSON body must be {"instances": [{...}, ...]} with at least one instance')
    return [_checked(one, signature, f"instance {number}") for number, one in enumerate(instances)]


def _checked(instance: Mapping[str, Any], signature: Signature, where: str) -> Request:
    fields = {field.name: field for field in signature.inputs}
    for name in instance:
        if name not in fields:
            raise UserError(f"{where}: unknown input '{name}'{nearest(name, fields)}")
    missing = [field.name for field in signature.inputs if field.required and instance.get(field.name) is None]
    if missing:
        raise UserError(f"{where}: input '{missing[0]}' is missing")
    return {name: _value(fields[name], value, where) for name, value in instance.items() if value is not None}


def _value(field: Field, value: Any, where: str) -> Any:
    """One input's JSON or form value in the type of its kind."""
    if isinstance(value, bytes) and field.kind not in PICTURES:
        value = value.decode("utf-8", "replace")
    match field.kind:
        case "image" | "mask":
            return value if isinstance(value, bytes) else _image(value, field.name, where)
        case "text":
            good = isinstance(value, str)
        case "seed":
            value, good = _read(int, value, int | str)
        case "class":
            good = isinstance(value, str | int) and not isinstance(value, bool)
        case "number":
            value, good = _read(float, value, int | float | str)
        case _:
            good = True
    if not good:
        raise UserError(f"{where}: '{field.name}' must be a {field.kind}, not {json.dumps(value, default=str)[:80]}")
    return value


def _read(kind: type, value: Any, of: Any) -> tuple[Any, bool]:
    """The value as a number of the kind, and whether it is one: text that none is made of and integers beyond floats are not."""
    try:
        return (kind(value), True) if isinstance(value, of) and not isinstance(value, bool) else (value, False)
    except (ValueError, OverflowError):
        return value, False


def _image(value: Any, name: str, where: str) -> bytes:
    text = value.get("b64") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{where}: \'{name}\' must be {{"b64": "<base64 of an encoded image>"}}')
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise UserError(f"{where}: '{name}' is not valid base64: {error}") from error


def _multipart(content_type: str, body: bytes, signature: Signature) -> list[Request]:
    """Each part's field name is an input; repeated parts are several requests, a single one goes with all of them."""
    parts = _parts(content_type, body)
    fields = {field.name: field for field in signature.inputs}
    for name in parts:
        if name not in fields:
            raise UserError(f"multipart: unknown input '{name}'{nearest(name, fields)}")
    count = max((len(values) for values in parts.values()), default=0)
    uneven = [name for name, values in parts.items() if len(values) not in (1, count)]
    if not count or uneven:
        wrong = f"{len(parts[uneven[0]])} of '{uneven[0]}' for {count} requests" if uneven else "no parts"
        raise UserError(f"multipart: {wrong}; send one part per input, or as many of each as there are requests")
    return [
        _checked(
            {name: values[i] if len(values) == count else values[0] for name, values in parts.items()},
            signature,
            f"request {i}",
        )
        for i in range(count)
    ]


def _parts(content_type: str, body: bytes) -> dict[str, list[bytes]]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import create_form_parser

    parts: dict[str, list[bytes]] = {}
    seen = 0

    def keep(name: bytes | None, value: bytes | None) -> None:
        nonlocal seen
        seen += 1
        if seen > MAX_INSTANCES * 8:
            raise UserError(f"multipart: more than {MAX_INSTANCES * 8} parts; send several requests")
        parts.setdefault((name or b"").decode("utf-8", "replace"), []).append(value or b"")

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        keep(file.field_name, file.file_object.read())
        file.close()

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = create_form_parser(
            {"Content-Type": content_type.encode()}, lambda f: keep(f.field_name, f.value), on_file, in_memory
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise UserError(f"the multipart body cannot be parsed: {error}") from error
    return parts
