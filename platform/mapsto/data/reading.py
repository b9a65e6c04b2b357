"""References → bytes: whole objects side by side, members of archives in stretches, slices and frames file by file."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from ..core.codecs import encode
from ..core.errors import UserError
from ..core.storage import Storage
from .nifti import volume
from .sources.item import Reference
from .sources.manifest import resolved
from .video import frames, library
from .zips import opened

AT_ONCE = 16
"""Objects fetched side by side; so many are held in memory."""
STRETCH_BYTES = 8 * 2**20
GAP_BYTES = 64 * 2**10
"""Members at most so far apart are fetched by one request."""
BZ2_DAMAGED = "Invalid data stream"
"""What bz2 says, by a plain OSError, of bytes that are not its own."""
LARGEST_BYTES = 512 * 2**20
"""A larger file is refused unread."""


def fetch(references: Sequence[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    """Each reference with its bytes, or with the reason why there are none. References of one kind come together.

    A file that is not there is a reason; storage that refuses or cannot be reached raises UserError.
    """
    good = []
    for reference in references:
        if reference.reason:
            yield reference, reference.reason
        elif reference.size > LARGEST_BYTES:
            yield reference, f"{reference.size / 2**20:.0f} MB, over the limit of {LARGEST_BYTES / 2**20:.0f}"
        else:
            good.append(reference)
    readers = {
        "object": _objects,
        "range": _ranges,
        "raw": _pictures,
        "zip": _zipped,
        "parquet": _cells,
        "slice": _slices,
        "frame": _frames,
    }
    good.sort(key=lambda r: (r.how, r.uri, r.offset))
    for (how, uri), group in groupby(good, key=lambda r: (r.how, r.uri if r.how != "object" else "")):
        yield from readers[how](uri, list(group), storage)


def _objects(_: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    def read(reference: Reference) -> bytes | str:
        return _object(reference.uri, storage)

    if "://" not in references[0].uri or references[0].uri.startswith("file://"):
        for reference in references:
            yield reference, read(reference)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        under_way: deque[Future[bytes | str]] = deque(pool.submit(read, r) for r in references[:AT_ONCE])
        for reference, following in zip_longest(references, references[AT_ONCE:]):
            yield reference, under_way.popleft().result()
            if following is not None:
                under_way.append(pool.submit(read, following))


def _object(uri: str, storage: Storage) -> bytes | str:
    try:
        return storage.read(uri)
    except UserError as error:
        if isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError)):
            return "not found"
        raise
    except ValueError as error:  # a zero byte, or what is no Unicode
        return f"no file can have this name: {error}"


def _ranges(uri: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    for stretch in _stretches(references):
        start = stretch[0].offset
        data = storage.read_range(uri, start, max(r.offset + r.size for r in stretch))
        for reference in stretch:
            part = data[reference.offset - start : reference.offset - start + reference.size]
            yield reference, part if len(part) == reference.size else "the archive ends before this member does"


def _pictures(uri: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    """Bare pixels, as PNG: height, width, channels and their order are in `member`."""
    for reference, data in _ranges(uri, references, storage):
        if isinstance(data, str):
            yield reference, "the file ends before this picture does"
            continue
        *shape, order = reference.member.split(",")
        height, width, channels = map(int, shape)
        pixels = np.frombuffer(data, np.uint8)
        planes = order == "planes"
        image = (
            pixels.reshape(channels, height, width).transpose(1, 2, 0) if planes else pixels.reshape(height, width, -1)
        )
        yield reference, encode(np.ascontiguousarray(image[:, :, 0] if channels == 1 else image), "png")


def _stretches(references: list[Reference]) -> Iterator[list[Reference]]:
    held: list[Reference] = []
    for reference in references:
        far = held and reference.offset - (held[-1].offset + held[-1].size) > GAP_BYTES
        if far or (held and reference.offset + reference.size - held[0].offset > STRETCH_BYTES):
            yield held
            held = []
        held.append(reference)
    if held:
        yield held


def _zipped(uri: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        for reference in references:
            method, compressed, crc = reference.columns["_packed"]
            try:
                with opened(
                    raw, reference.member, reference.offset, reference.size, (method, compressed, crc)
                ) as member:
                    data = member.read(reference.size + 1)
                yield reference, data if len(data) <= reference.size else "larger than the archive says: refused"
            except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                if isinstance(error, OSError) and str(error) != BZ2_DAMAGED:
                    raise  # the store's
                yield reference, f"cannot be read from the archive: {error}"


def _cells(uri: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    import pyarrow.parquet as pq

    filesystem, path = storage.arrow(uri)
    with storage.retry(uri, lambda: pq.ParquetFile(path, filesystem=filesystem)) as file:
        where = {id(r): r.member.rsplit(":", 2) for r in references}
        references.sort(key=lambda r: (int(where[id(r)][1]), int(where[id(r)][2])))
        for (column, group), members in groupby(references, key=lambda r: tuple(where[id(r)][:2])):
            cells, masks, paths = _column(file, int(group), column), None, None
            for reference in members:
                row = int(where[id(reference)][2])
                value = cells[row].as_py()
                if name := reference.columns.get("_mask_cell"):
                    if masks is None:
                        masks = file.read_row_group(int(group), columns=[name.split(".")[0]]).column(0)
                    mask = masks[row].as_py()
                    data = mask.get("bytes") if isinstance(mask, dict) else mask
                    if data is None and isinstance(mask, dict) and mask.get("path"):
                        yield reference, f"its mask has a path here, and no bytes: {str(mask['path'])[:80]}"
                        continue
                    reference.columns["_mask_bytes"] = data
                if value is None and "." in column:  # Hugging Face's: bytes or a path
                    paths = _column(file, int(group), f"{column.split('.')[0]}.path") if paths is None else paths
                    if len(paths) and (path := paths[row].as_py()):
                        value = _object(resolved(uri.rsplit("/", 1)[0], path), storage)
                yield reference, value if value is not None else "the row holds no image"


def _column(file: Any, group: int, name: str) -> Any:
    """A column of a row group, or a struct's field (`image.bytes`); no cell where there is none of that name."""
    table = file.read_row_group(group, columns=[name])
    if not table.num_columns:
        return ()
    column = table.column(0)
    return column.combine_chunks().field(name.split(".", 1)[1]) if "." in name else column


def _slices(uri: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    fs, path = storage.fs(uri)
    size = int(storage.retry(uri, lambda: fs.size(path)) or 0)
    too_large = f"{size / 2**20:.0f} MB, over the limit of {LARGEST_BYTES / 2**20:.0f}" if size > LARGEST_BYTES else ""
    data = b"" if too_large else storage.read(uri)
    try:
        if too_large:
            raise UserError(too_large)
        pictures = volume(data)
    except UserError as error:
        yield from ((reference, str(error)) for reference in references)
        return
    for reference in references:
        whole = reference.offset < len(pictures)
        yield reference, encode(np.ascontiguousarray(pictures[reference.offset]), "png") if whole else "no such slice"


def _frames(uri: str, references: list[Reference], storage: Storage) -> Iterator[tuple[Reference, bytes | str]]:
    library()
    of = {(reference.offset, int(reference.member)): reference for reference in references}
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as file:
        try:
            for window, data in frames(file, list(of)):
                yield of.pop(window), data
        except UserError as error:
            yield from ((reference, str(error)) for reference in of.values())
