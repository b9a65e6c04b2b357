"""Names by the million on disk instead of in memory: kept in the order they came, found by key, sorted.

A private temporary database of SQLite (https://www.sqlite.org/inmemorydb.html, "Temporary Databases"): it lies in `SQLITE_TMPDIR`, `TMPDIR`
or `/var/tmp`, nobody else sees it, and it is gone with its process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .errors import UserError

CACHE_KIB = 16 * 2**10
"""What a table holds in memory at most."""


class Entry(NamedTuple):
    key: str
    name: str
    size: int


class DiskIndex:
    """Entries, several of one key too. All methods raise UserError where the disk has no room for them."""

    def __init__(self) -> None:
        # Of Python's own threads only one has it at a time; a generator may be closed by another.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._keyed = False
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA temp_store = FILE",
            "CREATE TABLE entries (place INTEGER PRIMARY KEY, key BLOB, name BLOB, size INTEGER, used INTEGER DEFAULT 0)",
            "BEGIN",
        ):
            self._db.execute(statement)

    def extend(self, entries: Iterable[tuple[str, str, int]]) -> None:
        """Add (key, name, size) at the end."""
        rows = ((_bytes(key), _bytes(name), size) for key, name, size in entries)
        try:
            self._db.executemany("INSERT INTO entries (key, name, size) VALUES (?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise _full(error) from error

    def __iter__(self) -> Iterator[Entry]:
        """In the order they came; entries must not be added meanwhile."""
        yield from map(_entry, self._run("SELECT key, name, size FROM entries ORDER BY place"))

    def __len__(self) -> int:
        return next(self._run("SELECT COUNT(*) FROM entries"))[0]

    def by_key(self) -> Iterator[Entry]:
        """Sorted by key, as Python sorts them."""
        yield from map(_entry, self._run("SELECT key, name, size FROM entries ORDER BY key, place"))

    def of(self, key: str) -> list[Entry]:
        """The entries of a key, in the order they came."""
        self._find_by_key()
        found = self._run("SELECT key, name, size FROM entries WHERE key = ? ORDER BY place", _bytes(key))
        return [_entry(row) for row in found]

    def count(self, key: str) -> int:
        self._find_by_key()
        return next(self._run("SELECT COUNT(*) FROM entries WHERE key = ?", _bytes(key)))[0]

    def use(self, key: str, name: str | None = None) -> None:
        """Note that the entries of a key, or the one of that name among them, have found what they belong to."""
        self._find_by_key()
        if name is None:
            self._run("UPDATE entries SET used = 1 WHERE key = ?", _bytes(key))
        else:
            self._run("UPDATE entries SET used = 1 WHERE key = ? AND name = ?", _bytes(key), _bytes(name))

    def unused(self) -> Iterator[Entry]:
        """Those that `use` never named, sorted by name."""
        yield from map(_entry, self._run("SELECT key, name, size FROM entries WHERE NOT used ORDER BY name"))

    def unused_keys(self) -> Iterator[Entry]:
        """The first entry of each key that `use` never named, in the order they came."""
        yield from map(
            _entry,
            self._run(
                "SELECT key, name, size FROM entries WHERE place IN (SELECT MIN(place) FROM entries WHERE NOT used GROUP BY key) ORDER BY place"
            ),
        )

    def __del__(self) -> None:
        self._db.close()

    def _find_by_key(self) -> None:
        if not self._keyed:
            self._run("CREATE INDEX by_key ON entries (key)")
            self._keyed = True

    def _run(self, statement: str, *values: bytes) -> Iterator[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise _full(error) from error


def _entry(row: tuple[bytes, bytes, int]) -> Entry:
    return Entry(_text(row[0]), _text(row[1]), row[2])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # names that are not UTF-8 have surrogates in them


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _full(error: sqlite3.OperationalError) -> UserError:
    return UserError(f"the temporary folder has no room for an index of names ({error}); set TMPDIR to a larger disk")
