"""Images inside tar, tar.gz and zip files: one archive, or a folder of them whose names give splits (`train.tar`).

Nothing is ever unpacked to a path. Members whose names escape (absolute, `..`), links, devices and further archives are
refused and reported. A plain tar is read by byte ranges; a compressed one is written out plain once, below the artifact.
Folders that enclose all images of the archives of one split, or of none, name no class; those of every split are as deep.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Iterator

from ...core.disk_index import DiskIndex, Entry
from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage
from ..zips import ENCRYPTED, Member, members
from .enclosing import below, each_below
from .expand import MOST_EXPANSION, gunzipped
from .item import SPLIT_NAMES, Reference, Told, hidden, is_archive, is_image
from .look import Look
from .samples import CAPTIONS

SETTINGS = ("told",)

NESTED = "an archive within an archive: not opened"
NO_END = "the archive has no end mark: it may be cut short between two members"
BOMB_BYTES = 64 * 2**20
"""A member up to so large may grow as it likes."""


def recognise(look: Look) -> str | None:
    archives, images = sum(map(is_archive, look.names)), sum(map(is_image, look.names))
    if is_archive(look.uri):
        why = "its name ends like an archive's"
    elif archives and not images:
        why = f"archives among its files: {archives}, images: none"
    else:
        return None
    found = look.sample
    if found is None or not found.by_class:
        return why
    texts = ", ".join(kind for kind in found.kinds if kind in CAPTIONS)
    return (
        f"{why}; its folders are classes ({', '.join(found.folders)}): the texts beside the images ({found.key}: {texts}) are not read, and "
        "with layout `webdataset` they are captions, and no image has a class"
    )


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """`work`: folder for what compressed archives hold. Raises UserError for a broken archive or none."""
    if is_archive(uri):
        yield from below(_one(uri, storage, work, None), told)
        return
    by_split: dict[Split | None, DiskIndex] = {}
    for name, _ in storage.walk(uri):
        by_split.setdefault(_split(name), DiskIndex()).extend([(name, "", 0)])
    if not any(is_archive(name) for names in by_split.values() for name, _, _ in names):
        raise UserError(f"{uri}: no archive (.tar, .tar.gz, .tgz, .zip) below it")
    yield from each_below(
        (_several((name for name, _, _ in names), storage, work, split) for split, names in by_split.items()), told
    )


def escapes(member: str) -> bool:
    """Whether a member's path leaves the archive: absolute, a drive, or with `..`."""
    path = member.replace("\\", "/")
    return path.startswith("/") or (len(path) > 1 and path[1] == ":") or ".." in path.split("/")


def ends_well(archive: tarfile.TarFile) -> bool:
    """Whether a tar that was read through ends with its mark, a block of zeros; without one it may be cut short between two
    members. Raises tarfile.ReadError for a part of a header, which `tarfile` takes for the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if any(block):
        raise tarfile.ReadError("unexpected end of data")
    return bool(block)


def _split(name: str) -> Split | None:
    return SPLIT_NAMES.get(name.rsplit("/", 1)[-1].split(".", 1)[0].lower())


def _several(names: Iterable[str], storage: Storage, work: str, split: Split | None) -> Iterator[tuple[str, Reference]]:
    for name in names:
        if is_archive(name):
            yield from _one(name, storage, work, split)
        elif not hidden(name.rsplit("/", 1)[-1]):
            yield "", Reference(name, name, reason="not an archive")


def _one(uri: str, storage: Storage, work: str, split: Split | None) -> Iterator[tuple[str, Reference]]:
    """(path in the archive, or "" where it says nothing; reference) of each member."""
    try:
        if uri.lower().endswith(".zip"):
            yield from _zip(uri, storage, split)
        elif uri.lower().endswith(".tar"):
            yield from _tar(uri, uri, storage, split)
        else:
            yield from _tar(uri, gunzipped(uri, storage, work), storage, split)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zipfile.LargeZipFile,
        ValueError,
        NotImplementedError,
    ) as error:
        raise UserError(f"{uri}: the archive is broken ({error})") from error


def _tar(name: str, plain: str, storage: Storage, split: Split | None) -> Iterator[tuple[str, Reference]]:
    fs, path = storage.fs(plain)
    with storage.retry(plain, lambda: fs.open(path, "rb")) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
        while member := archive.next():
            setattr(archive, "members", [])  # noqa: B010  an archive of millions is not held
            if member.isdir():
                continue
            known = f"{name}!{member.name}"
            if not member.isreg():
                yield "", Reference(known, plain, reason="a link or device, not a file", split=split)
            elif escapes(member.name):
                yield "", Reference(known, plain, reason="its path leaves the archive", split=split)
            elif is_archive(member.name):
                yield "", Reference(known, plain, reason=NESTED, split=split)
            elif not hidden(member.name.removeprefix("./")):
                yield member.name, Reference(known, plain, "range", member.offset_data, member.size, split=split)
        if not ends_well(archive):
            yield "", Reference(name, plain, reason=NO_END, split=split)


def _zip(uri: str, storage: Storage, split: Split | None) -> Iterator[tuple[str, Reference]]:
    """The directory is read twice: first for the names that several members have, and for members that overlap, on disk."""
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        names = DiskIndex()

        def noted() -> Iterator[Member]:
            for member in members(raw):
                names.extend([(member.name, "", 0)])
                yield member

        overlapping = _overlapping(noted())
        for member in members(raw):
            if member.name.endswith("/"):
                continue
            known = f"{uri}!{member.name}"
            kind = member.mode & 0o170000
            if kind not in (0, 0o100000):
                yield "", Reference(known, uri, reason="a link or device, not a file", split=split)
            elif escapes(member.name):
                yield "", Reference(known, uri, reason="its path leaves the archive", split=split)
            elif names.count(member.name) > 1:
                yield "", Reference(known, uri, reason="several members have this name", split=split)
            elif member.flags & ENCRYPTED:
                yield "", Reference(known, uri, reason="encrypted", split=split)
            elif is_archive(member.name):
                yield "", Reference(known, uri, reason=NESTED, split=split)
            elif member.size > max(BOMB_BYTES, MOST_EXPANSION * member.compressed):
                yield (
                    "",
                    Reference(known, uri, reason=f"grows beyond {MOST_EXPANSION} times its size: refused", split=split),
                )
            elif overlapping.count(str(member.offset)):
                yield "", Reference(known, uri, reason="it overlaps another member: refused", split=split)
            elif not hidden(member.name):
                columns = {"_packed": [member.method, member.compressed, member.crc]}
                yield (
                    member.name,
                    Reference(known, uri, "zip", member.offset, member.size, member.name, None, split, columns),
                )


def _overlapping(found: Iterator[Member]) -> DiskIndex:
    """The offsets of members that begin within another one, and of those; a bomb may be made of such (D. Fifield, A better zip bomb,
    WOOT 2019)."""
    ordered, out = DiskIndex(), DiskIndex()
    ordered.extend((f"{member.offset:020d}", str(member.offset), member.end) for member in found)
    last = Entry("", "", 0)
    for entry in ordered.by_key():
        if int(entry.name) < last.size:
            out.extend((each.name, "", 0) for each in (last, entry))
        last = max(last, entry, key=lambda each: each.size)
    return out
