"""Compressed files written out plain once, below the artifact: only then can tasks read parts of them."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ...core.artifact import digest
from ...core.errors import UserError
from ...core.storage import Storage, join

MOST_EXPANSION = 100
"""A compressed file that grows by more than this, beyond a gigabyte, is refused."""


def gunzipped(uri: str, storage: Storage, work: str) -> str:
    """The URI of a gzip file's content. Raises UserError for a broken one, a bomb, and where there is no room."""
    return _expanded(uri, uri, storage, work, lambda raw: gzip.open(raw))


def unzipped(uri: str, member: str, storage: Storage, work: str) -> str:
    """The URI of one member of a zip (an npz's array)."""
    return _expanded(uri, f"{uri}!{member}", storage, work, lambda raw: zipfile.ZipFile(raw).open(member))


def _expanded(
    uri: str, name: str, storage: Storage, work: str, opened: Callable[[Any], IO[bytes] | gzip.GzipFile]
) -> str:
    plain = join(work, f"plain-{digest(name.encode())}")
    if storage.exists(plain):
        return plain
    fs, path = storage.fs(uri)
    size = int(storage.retry(uri, lambda: fs.size(path)) or 0)
    with tempfile.TemporaryDirectory(prefix="mapsto-") as folder:
        local = Path(folder) / "plain"
        try:
            with (
                storage.retry(uri, lambda: fs.open(path, "rb")) as raw,
                opened(raw) as source,
                open(local, "wb") as out,
            ):
                while part := source.read(2**22):
                    out.write(part)
                    if out.tell() > max(MOST_EXPANSION * size, 2**30):
                        raise UserError(f"{name}: grows beyond {MOST_EXPANSION} times its size when expanded: refused")
                    if shutil.disk_usage(folder).free < 2**28:
                        raise UserError(
                            f"{name}: no room in {tempfile.gettempdir()} to expand it; set TMPDIR to a larger disk"
                        )
        except (
            gzip.BadGzipFile,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,  # zipfile's of an encrypted member, and of a compression that it does not know
        ) as error:
            raise UserError(f"{uri}: the archive is broken ({error})") from error
        storage.upload(local, plain)
    return plain
