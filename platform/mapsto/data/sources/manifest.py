"""A manifest names the images: CSV, JSON lines or Parquet with a column `image` or `uri` (relative to the manifest, or
absolute), or `bytes`, or Hugging Face's struct `{bytes, path}`, and if wanted `label`, `labels` (a list), `value` (a number), `split`, `mask` (URI; in Parquet also bytes like the image's), `boxes`,
`box_labels`, `crowd`, `difficult`, `area`, `segments`, `keypoints`, `caption`, `identity`, `license`, `consent`. Parquet may name its labels' classes in
Hugging Face's metadata (`ClassLabel`); -1 is no label there. A folder of Parquet files (`train-00000-of-00002.parquet`) is one manifest; its
files' names give the splits that their rows do not."""

from __future__ import annotations

import csv
import datetime
import decimal
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...core.errors import UserError, nearest
from ...core.sample import Split
from ...core.storage import Storage, join
from .item import SPLIT_NAMES, Reference, Told, hidden, is_image, is_manifest
from .look import Look

SETTINGS = ("told",)
LARGEST_CELL = 64 * 2**20
"""Characters of a CSV file's cell; Python's own limit, 131,072, is less than the polygons of a large image take."""
IMAGE = ("image", "uri", "bytes")
LISTS = ("boxes", "box_labels", "labels", "crowd", "difficult", "area", "segments", "keypoints")
FURTHER = ("mask", *LISTS, "value", "caption", "identity", "license", "consent")
KNOWN = (*IMAGE, "label", "split", *FURTHER)


def recognise(look: Look) -> str | None:
    if is_manifest(look.uri):
        return "its name ends like a manifest's"
    files = [] if look.one else _files(look.top)
    if files and (not any(map(is_image, look.names)) or _holds_images(join(look.uri, files[0]), look.storage)):
        return f"Parquet files at its top: {len(files)}, the first {files[0]}"
    return None


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """Raises UserError for a manifest without an image column, a broken line or an unknown split, with its number. The classes that
    Hugging Face's features of a Parquet file name are all the data set's, in their order."""
    if is_manifest(uri):
        yield from _rows(uri, storage, None, told)
        return
    files = _files(storage.names(uri))
    if not files:
        raise UserError(f"{uri}: no manifest (.csv, .jsonl, .parquet), and no folder of Parquet files")
    for name in files:
        split = SPLIT_NAMES.get(re.split(r"[-_.]", name, maxsplit=1)[0].lower())
        yield from _rows(join(uri, name), storage, split, told)


def _files(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(".parquet") and not hidden(name))


def _holds_images(uri: str, storage: Storage) -> bool:
    """Whether a Parquet file has the images themselves in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, path = storage.arrow(uri)
    try:
        schema = storage.retry(uri, lambda: pq.read_schema(path, filesystem=filesystem))
    except pa.ArrowInvalid:
        return False
    return any(schema.names.count(name) == 1 and _bytes_in(name, schema.field(name).type) for name in IMAGE)


def _rows(uri: str, storage: Storage, split: Split | None, told: Told) -> Iterator[Reference]:
    """`split`: of rows that give none."""
    kind = uri.lower().rsplit(".", 1)[-1]
    found = _parquet(uri, storage, told) if kind == "parquet" else (_csv if kind == "csv" else _jsonl)(uri, storage)
    folder = uri.rsplit("/", 1)[0] if "/" in uri else "."
    for number, (where, row) in enumerate(found, 1):
        yield _reference(f"{uri}: row {number}", folder, where, row, split)


def _reference(
    at: str, folder: str, where: tuple[str, str] | None, row: Mapping[str, Any], split: Split | None
) -> Reference:
    given = {k: v for k, v in row.items() if v is not None and v != ""}
    if "split" in given:
        split = SPLIT_NAMES.get(str(given["split"]).lower())
        if split is None:
            raise UserError(f"{at}: split '{given['split']}' is unknown{nearest(str(given['split']), SPLIT_NAMES)}")
    columns = {name: given[name] for name in FURTHER if name in given}
    try:
        columns |= {name: json.loads(columns[name]) for name in LISTS if isinstance(columns.get(name), str)}
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'{at}: boxes and box_labels are JSON lists, such as [[10, 20, 50, 80]] and ["cat"], and so are {", ".join(LISTS[2:])}: {error}'
        ) from error
    if wrong := [name for name in LISTS if not isinstance(columns.get(name) or [], list)]:
        example = '["cat"]' if wrong[0] in ("labels", "box_labels") else "[[10, 20, 50, 80]]"
        raise UserError(f"{at}: {wrong[0]} is a list, such as {example}, not {str(columns[wrong[0]])[:40]}")
    if "mask" in columns:
        columns["mask"] = resolved(folder, str(columns["mask"]))
    label = str(given["label"]) if "label" in given else None
    if where is not None:
        columns |= {"_mask_cell": row["_mask_cell"]} if "_mask_cell" in row else {}
        return Reference(at, where[0], "parquet", member=where[1], label=label, split=split, columns=columns)
    image = given.get("image", given.get("uri"))
    if image is None:
        return Reference(at, reason="the row names no image", label=label, split=split)
    if not isinstance(image, str):
        raise UserError(f"{at}: an image is a path or a URI, not {str(image)[:40]}")
    uri = resolved(folder, image)
    return Reference(uri, uri, label=label, split=split, columns=columns)


def resolved(folder: str, path: str) -> str:
    """The URI of what a manifest in a folder names: a URI, an absolute path, or one from the folder."""
    return path if "://" in path or path.startswith("/") else join(folder, path)


def _check(uri: str, columns: list[str]) -> None:
    if not any(name in columns for name in IMAGE):
        raise UserError(f"{uri}: no column image, uri or bytes; it has {', '.join(columns) or 'none'}")
    for name in columns:
        meant = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.8)
        if name not in KNOWN and meant and meant[0] not in columns:
            raise UserError(f"{uri}: column '{name}' is unknown, did you mean '{meant[0]}'?")
    if twice := [name for name in KNOWN if columns.count(name) > 1]:
        raise UserError(f"{uri}: two columns are called {twice[0]}")


def _check_text(uri: str, columns: list[str]) -> None:
    """Of a manifest of text, whose rows name files."""
    _check(uri, columns)
    if not {"image", "uri"} & set(columns):
        raise UserError(
            f"{uri}: a column bytes is read in Parquet alone; name the image's file in a column image, or write the rows as Parquet"
        )


def _csv(uri: str, storage: Storage) -> Iterator[tuple[None, dict[str, Any]]]:
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
        try:
            csv.field_size_limit(LARGEST_CELL)
            reader = csv.DictReader(text)
            _check_text(uri, list(reader.fieldnames or ()))
            for row in reader:
                if None in row:
                    raise UserError(f"{uri}:{reader.line_num}: more fields than the header has")
                yield None, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{uri}: not a CSV file in UTF-8: {error}") from error


def _jsonl(uri: str, storage: Storage) -> Iterator[tuple[None, dict[str, Any]]]:
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        for number, line in enumerate(raw, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{uri}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f'{uri}:{number}: each line is an object, such as {{"image": "a.jpg", "label": "cat"}}')
            _check_text(f"{uri}:{number}", list(row))
            yield None, row


def _parquet(uri: str, storage: Storage, told: Told) -> Iterator[tuple[tuple[str, str] | None, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, path = storage.arrow(uri)
    try:
        file = storage.retry(uri, lambda: pq.ParquetFile(path, filesystem=filesystem))
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: not a Parquet file: {str(error).splitlines()[0]}") from error
    with file:
        names = file.schema_arrow.names
        _check(uri, names)
        classes = _class_names(file.schema_arrow.metadata) if "label" in names else []
        told.classes.update(dict.fromkeys(classes))
        kinds = {name: file.schema_arrow.field(name).type for name in IMAGE if name in names}
        inside = next((path for name, kind in kinds.items() if (path := _bytes_in(name, kind))), None)
        masks = _bytes_in("mask", file.schema_arrow.field("mask").type) if "mask" in names else None
        if masks and not inside:
            raise UserError(
                f"{uri}: the column mask holds bytes, and the images are files: both are bytes here, or both files"
            )
        elsewhere = {path.split(".")[0] for path in (inside, masks) if path}
        columns = [name for name in KNOWN if name in names and name not in elsewhere]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            table = file.read_row_group(group, columns=columns).to_pylist() if columns else [{}] * rows
            for k, cells in enumerate(table):
                row = {name: _plain(f"{uri}: row {k} of row group {group}: {name}", v) for name, v in cells.items()}
                if classes and isinstance(row.get("label"), int):
                    row["label"] = _class_name(f"{uri}: row {k} of row group {group}", classes, row["label"])
                if masks:
                    row["_mask_cell"] = masks
                yield ((uri, f"{inside}:{group}:{k}") if inside else None), row


def _plain(at: str, value: Any) -> Any:
    """A cell as JSON has it: dates and times as ISO 8601 writes them, decimals as numbers, bytes as the text that they are. Raises UserError
    for bytes that are none."""
    if isinstance(value, list | tuple):
        return [_plain(at, each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(at, each) for name, each in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{at}: bytes that are no text in UTF-8") from error
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _bytes_in(name: str, kind: Any) -> str | None:
    """The path of the bytes in a column: itself, or the `bytes` of Hugging Face's `{bytes, path}`."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{name}.bytes"
    return None


def _class_names(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """The classes of the column `label` by Hugging Face's features; none where they are not told."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features["label"].get("names") or ()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _class_name(at: str, classes: list[str], number: int) -> str | None:
    if not -1 <= number < len(classes):
        raise UserError(f"{at}: label {number}, but the metadata names {len(classes)} classes")
    return classes[number] if number >= 0 else None
