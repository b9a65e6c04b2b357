"""ImageNet as it is handed out: `ILSVRC2012_img_train.tar`, a tar of one tar per class; `ILSVRC2012_img_val.tar`, with the
development kit's ground truth (`ILSVRC2012_devkit_t12.tar.gz`, or its folder unpacked) for the labels.

Nothing is unpacked: members are byte ranges of the outer tar. Labels are WordNet ids.
Source: https://image-net.org/challenges/LSVRC/2012/
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from ...core.errors import UserError
from ...core.storage import Storage, join
from .archive import NO_END, ends_well, escapes
from .item import Reference
from .look import Look

TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def recognise(look: Look) -> str | None:
    found = [name for name in (TRAIN, VAL) if name in look.top or look.uri.endswith(name)]
    return f"it has {found[0]}" if found else None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Raises UserError for a broken archive, and for validation images without the development kit."""
    root, top = (uri.rsplit("/", 1)[0], [uri.rsplit("/", 1)[-1]]) if uri.endswith(".tar") else (uri, storage.names(uri))
    if TRAIN in top:
        yield from _train(join(root, TRAIN), storage)
    if VAL in top:
        yield from _val(root, storage)


def _train(uri: str, storage: Storage) -> Iterator[Reference]:
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        for inner in _members(raw, uri, 0, None):
            if inner is None:
                yield Reference(uri, uri, reason=NO_END, split="train")
                continue
            if not re.fullmatch(r"(.*/)?n\d{8}\.tar", inner.name):
                yield Reference(
                    f"{uri}!{inner.name}", uri, reason="not a class's archive (n01440764.tar)", split="train"
                )
                continue
            label = inner.name.rsplit("/", 1)[-1].removesuffix(".tar")
            for member in _members(raw, f"{uri}!{inner.name}", inner.offset_data, inner.size):
                if member is None:
                    yield Reference(f"{uri}!{inner.name}", uri, reason=NO_END, split="train")
                    continue
                known = f"{uri}!{inner.name}!{member.name}"
                if not member.isreg() or escapes(member.name):
                    yield Reference(
                        known, uri, reason="a link, a device, or a path that leaves the archive", split="train"
                    )
                else:
                    offset = inner.offset_data + member.offset_data
                    yield Reference(known, uri, "range", offset, member.size, label=label, split="train")


def _val(root: str, storage: Storage) -> Iterator[Reference]:
    uri = join(root, VAL)
    labels = _truth(root, storage)
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        for member in _members(raw, uri, 0, None):
            if member is None:
                yield Reference(uri, uri, reason=NO_END, split="val")
                continue
            known = f"{uri}!{member.name}"
            number = re.search(r"_(\d{8})\.JPEG$", member.name)
            if not member.isreg() or escapes(member.name) or number is None:
                yield Reference(known, uri, reason="not a validation image (ILSVRC2012_val_00000001.JPEG)", split="val")
            elif not 1 <= int(number[1]) <= len(labels):
                yield Reference(known, uri, reason="the ground truth has no line for its number", split="val")
            else:
                label = labels[int(number[1]) - 1]
                yield Reference(known, uri, "range", member.offset_data, member.size, label=label, split="val")


class _Part:
    """A stretch of a file as a file: an inner tar, read in place."""

    def __init__(self, raw: Any, start: int, size: int | None) -> None:
        self.raw, self.start, self.size, self.place = raw, start, size, 0

    def read(self, count: int = -1) -> bytes:
        if self.size is not None:
            left = self.size - self.place
            count = left if count < 0 else min(count, left)
        self.raw.seek(self.start + self.place)
        data = self.raw.read(count)
        self.place += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size or 0}[whence]
        self.place = base + offset
        return self.place

    def tell(self) -> int:
        return self.place


def _members(raw: Any, uri: str, start: int, size: int | None) -> Iterator[tarfile.TarInfo | None]:
    """A tar's members; None at last where it has no end mark: it may be cut short between two of them."""
    part: Any = _Part(raw, start, size)
    try:
        with tarfile.open(fileobj=part, mode="r:") as archive:
            while member := archive.next():
                setattr(archive, "members", [])  # noqa: B010  a million members are not held
                if not member.isdir():
                    yield member
            if not ends_well(archive):
                yield None
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{uri}: the archive is broken ({error})") from error


def _truth(root: str, storage: Storage) -> list[str]:
    """The WordNet id of each validation image, by number."""
    truth, meta = _kit(root, storage)
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        ids = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
    except (
        MatReadError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        OSError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise UserError(f"{root}: {META} is broken, or no MATLAB file of synsets: {error}") from error
    try:
        return [ids[int(line)] for line in truth.decode().split()]
    except (KeyError, ValueError) as error:
        raise UserError(f"{root}: {TRUTH} names a class that {META} does not have: {error}") from error


def _kit(root: str, storage: Storage) -> tuple[bytes, bytes]:
    for base in (join(root, KIT, "data"), join(root, KIT), root):
        if storage.exists(join(base, TRUTH)) and storage.exists(join(base, META)):
            return storage.read(join(base, TRUTH)), storage.read(join(base, META))
    packed = join(root, f"{KIT}.tar.gz")
    if storage.exists(packed):
        found: dict[str, bytes] = {}
        data = storage.read(packed)
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    if member.isreg() and name in (TRUTH, META):
                        file = archive.extractfile(member)
                        found[name] = file.read() if file else b""
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{packed}: the archive is broken ({error})") from error
        if len(found) == 2:
            return found[TRUTH], found[META]
    raise UserError(f"{root}: {VAL} needs {KIT}.tar.gz beside it: the validation images' classes are in it")
