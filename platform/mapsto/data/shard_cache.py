"""Row groups on the node's own disk, memory-mapped: read once from the store, shared by all processes of the node.

A draw then costs its own bytes only, whatever the shuffle, and the page cache is the memory limit. Entries are named
by the content they hold, written whole, and removed oldest first beyond a limit; so what a crash leaves does no harm.
`MAPSTO_CACHE` names another folder, `MAPSTO_CACHE_GB` another limit (0: read from the store each time).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.artifact import digest
from ..core.errors import UserError
from .dataset import SplitIndex, read_group
from .kept import Kept, kept

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("mapsto.cache")
LIMIT_GB = 20.0
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the process has too little of: no fault of the entry's."""
FREE_BYTES = 2**30
"""Disk space that the cache leaves free."""


def cached_group(
    index: SplitIndex, number: int, columns: Sequence[str], how: Kept | None = None
) -> tuple[pa.Table, int]:
    """One row group's columns, memory-mapped from the node's disk where there is room for it; with `how`, its images as
    that says. Beside it the bytes of memory that it holds: 0 where it is mapped."""
    file, group = index.group(number)
    folder = _folder()
    name = digest(repr((file.uri, file.sha256, file.bytes, group, sorted(columns), how)).encode())
    path = folder / f"{name}.arrow"
    found = _open(path)
    if found is None:
        with _lock(folder, path.name):
            found = _open(path)  # another process may have brought it meanwhile
            if found is None:
                table = read_group(index, number, columns)
                table = (table if how is None else kept(table, how)).combine_chunks()
                found = _open(path) if _write(table, path) else None
                if found is None:
                    return table, table.nbytes
    return found, 0


def _open(path: Path) -> pa.Table | None:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        os.utime(path)  # the newest used stays longest
        return table
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as error:  # what a machine that lost its power left: the store has it whole
        log.warning("%s: not readable (%s); fetched again", path, str(error).splitlines()[0])
        if getattr(error, "errno", None) not in SHORT:
            path.unlink(missing_ok=True)
        return None


def _write(table: pa.Table, path: Path) -> bool:
    """Whether the table was written; False when there is no room."""
    import pyarrow as pa

    limit = float(os.environ.get("MAPSTO_CACHE_GB", LIMIT_GB)) * 2**30
    if table.nbytes > limit:
        return False
    _evict(path.parent, limit - table.nbytes, FREE_BYTES + table.nbytes)
    if shutil.disk_usage(path.parent).free < FREE_BYTES + table.nbytes:
        return False
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        partial.replace(path)
        return True
    except OSError:  # the disk filled up meanwhile: the table is in memory, and the next one is tried anew
        return False
    finally:
        partial.unlink(missing_ok=True)


def _evict(folder: Path, limit: float, free: float) -> None:
    """Remove entries, oldest use first, until at most `limit` bytes stay and the disk has `free` bytes, as far as removing
    gives them. Mapped ones live on until they are let go."""
    entries = []
    for entry in os.scandir(folder):
        try:
            stat = entry.stat()
        except FileNotFoundError:
            continue
        if entry.name.endswith((".arrow", ".part")):
            entries.append((stat.st_mtime, stat.st_size, entry.path))
    over = sum(size for _, size, _ in entries) - limit
    missing = free - shutil.disk_usage(folder).free
    for _, size, path in sorted(entries):
        if over <= 0 and missing <= 0:
            return
        Path(path).unlink(missing_ok=True)
        over, missing = over - size, missing - size


@contextmanager
def _lock(folder: Path, name: str) -> Generator[None]:
    """One process of the node at a time per entry (by 256 lock files); a dead process's lock is free."""
    with open(folder / f"{name[:2]}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(os.environ.get("MAPSTO_CACHE") or Path(tempfile.gettempdir()) / f"mapsto-cache-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); set MAPSTO_CACHE to a folder that can"
        ) from error
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set MAPSTO_CACHE to a folder of your own")
    return folder
