"""Where an export goes: a folder or prefix of its own, written side by side, with `export.json` as its last file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core import codecs
from ...core.errors import UserError
from ...core.storage import Storage, join
from ..sources.item import EXPORTED, is_image

STARTED = ".mapsto-export"
"""There while an export is being written: what is left of a broken one may be replaced."""
AT_ONCE = 16
LONGEST_NAME = 150
"""Bytes of a file's name without its suffix."""
SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "mpo": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "tiff": (".tif", ".tiff"),
    "ppm": (".ppm", ".pgm", ".pbm", ".pnm"),
    "jpeg2000": (".jp2", ".j2k"),
    "bmp": (".bmp", ".dib"),
    "dib": (".dib", ".bmp"),
}
"""Those of a format, where they are not its name."""


@dataclass
class Target:
    """A folder or prefix that this export alone writes to."""

    uri: str
    storage: Storage
    files: int = 0
    size: int = 0

    def begin(self, *, force: bool) -> None:
        """Mark the export as begun. UserError for a folder that is not empty; with `force` an earlier export there, whole
        or broken, is removed, and nothing else ever is."""
        names = set(self.storage.glance(self.uri))
        if names and not force:
            raise UserError(f"{self.uri}: not empty; name another folder, or replace an earlier export with --force")
        if names and not names & {EXPORTED, STARTED}:
            raise UserError(
                f"{self.uri}: not empty, and no earlier export that --force may replace; name another folder"
            )
        if names:
            self.storage.delete(self.uri)
        self.storage.write_json(join(self.uri, STARTED), {})

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write small files side by side: (path below the target, content)."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda file: self.storage.write(join(self.uri, file[0]), file[1]), files):
                pass
        self.wrote(len(files), sum(len(data) for _, data in files))

    def upload(self, local: Path, name: str) -> None:
        """Write a large file from a local one, streaming."""
        self.storage.upload(local, join(self.uri, name))
        self.wrote(1, local.stat().st_size)

    def wrote(self, files: int, size: int) -> None:
        self.files += files
        self.size += size

    def finish(self, report: dict[str, Any]) -> None:
        """Write `export.json`: from here on the export counts as whole."""
        self.storage.write_json(join(self.uri, EXPORTED), report)
        self.storage.delete(join(self.uri, STARTED))


@dataclass
class Names:
    """File names from the sources' own, unique in their folder by what stands before the suffix; a second one gets the
    row's id. Holds eight bytes of each name."""

    key: Callable[[str], str] = str
    """What must differ, of a stem."""
    seen: set[int] = field(default_factory=set)

    def of(self, folder: str, row: dict[str, Any]) -> tuple[str, str]:
        """(stem, suffix) for a row's image in a folder."""
        name = re.split(r"[/!\\]", row["source"])[-1] if row.get("source") else str(row["row_id"])
        head, dot, tail = name.rpartition(".")
        stem, given = (head, f".{tail}") if dot and is_image(name) else (name, "")
        stem = (
            re.sub(r"[^\w.+=@()-]+", "_", stem).encode()[:LONGEST_NAME].decode(errors="ignore").strip("._") or "image"
        )
        unique = stem
        while not self._new(f"{folder}/{self.key(unique)}"):
            unique = f"{unique}-{row['row_id']}"
        return unique, suffix(row.get("format") or codecs.header(row["image"]).format, given)

    def _new(self, name: str) -> bool:
        number = int.from_bytes(hashlib.blake2b(name.casefold().encode(), digest_size=8).digest())
        before = len(self.seen)
        self.seen.add(number)
        return len(self.seen) > before


def suffix(format: str, given: str = "") -> str:
    """The suffix of an image format (Pillow's name in lower case); `given` itself where it is one of the format's."""
    known = SUFFIXES.get(format, (f".{format}",))
    return given if given.lower() in known else known[0]


def mask_suffix(data: bytes) -> str:
    return suffix(codecs.header(data).format)
