"""Pixels without an image format: idx (MNIST and its kin), CIFAR's binary files, MedMNIST's npz.

Each picture is a byte range of one file (written out plain where it is compressed) and becomes a PNG on its way into
the data set. Sources: http://yann.lecun.com/exdb/mnist/ (idx), https://www.cs.toronto.edu/~kriz/cifar.html (binary
version), https://medmnist.com (`train_images`, `train_labels`, ...).
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage, join
from .expand import gunzipped, unzipped
from .item import Reference, Told
from .look import Look

SETTINGS = ("told",)
IDX_SPLITS: dict[str, Split] = {"train": "train", "t10k": "test", "test": "test"}
CIFAR_PIXELS = 3 * 32 * 32
CIFAR_SPLITS: dict[str, Split] = {"test_batch.bin": "test", "test.bin": "test", "train.bin": "train"} | {
    f"data_batch_{k}.bin": "train" for k in range(1, 6)
}


def recognise(look: Look) -> str | None:
    top = look.top or (look.uri.rsplit("/", 1)[-1],)
    found = [name for name in top if _is_idx(name)] or [name for name in top if name in CIFAR_SPLITS]
    if found:
        return f"it has {found[0]}"
    if look.uri.endswith(".npz"):
        return "its name ends in .npz"
    return None


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """Raises UserError for a header that is none, sizes that do not fit it, and labels that differ in number."""
    if uri.endswith(".npz"):
        yield from _npz(uri, storage, work, told)
        return
    top = storage.names(uri)
    if any(name in CIFAR_SPLITS for name in top):
        yield from _cifar(uri, top, storage)
        return
    images = [name for name in top if _is_idx(name)]
    if not images:
        raise UserError(f"{uri}: no idx images, CIFAR batches or .npz in it")
    for name in images:
        yield from _idx(uri, name, top, storage, work)


def _is_idx(name: str) -> bool:
    return "images" in name and "idx3-ubyte" in name


def _plain(uri: str, storage: Storage, work: str) -> str:
    return gunzipped(uri, storage, work) if uri.endswith(".gz") else uri


def _size(uri: str, storage: Storage) -> int:
    fs, path = storage.fs(uri)
    return int(storage.retry(uri, lambda: fs.size(path)) or 0)


def _idx(root: str, name: str, top: Sequence[str], storage: Storage, work: str) -> Iterator[Reference]:
    uri = join(root, name)
    plain = _plain(uri, storage, work)
    magic, count, height, width = _header(uri, storage.read_range(plain, 0, 16), 4)
    if magic != 0x0803 or _size(plain, storage) != 16 + count * height * width:
        raise UserError(f"{uri}: not idx images (magic 0x0803, then {count} x {height} x {width} bytes)")
    labels_name = name.replace("images", "labels").replace("idx3", "idx1")
    labels: np.ndarray | None = None
    if labels_name in top:
        data = storage.read(_plain(join(root, labels_name), storage, work))
        magic, found = _header(join(root, labels_name), data, 2)
        if magic != 0x0801 or found != count or len(data) != 8 + count:
            raise UserError(f"{join(root, labels_name)}: {found} labels for {count} images")
        labels = np.frombuffer(data, np.uint8, offset=8)
    split = next((split for head, split in IDX_SPLITS.items() if name.startswith(head)), None)
    for k in range(count):
        label = str(labels[k]) if labels is not None else None
        yield _picture(uri, plain, k, 16, (height, width, 1), label, split)


def _header(uri: str, data: bytes, words: int) -> tuple[int, ...]:
    if len(data) < 4 * words:
        raise UserError(f"{uri}: too short for an idx file")
    return struct.unpack(f">{words}I", data[: 4 * words])


def _cifar(root: str, top: Sequence[str], storage: Storage) -> Iterator[Reference]:
    hundred = "train.bin" in top
    meta = "fine_label_names.txt" if hundred else "batches.meta.txt"
    names = storage.read(join(root, meta)).decode().split() if meta in top else None
    before = 2 if hundred else 1  # CIFAR-100: coarse and fine label
    record = before + CIFAR_PIXELS
    for name in sorted(n for n in top if n in CIFAR_SPLITS):
        uri = join(root, name)
        data = storage.read(uri)
        if not data or len(data) % record:
            raise UserError(f"{uri}: {len(data)} bytes are no whole number of {record}-byte records")
        for k in range(len(data) // record):
            value = data[k * record + before - 1]
            if names is not None and value >= len(names):
                raise UserError(f"{uri}: record {k} has label {value}, {meta} has {len(names)} names")
            label = names[value] if names is not None else str(value)
            at = k * record + before
            yield Reference(
                f"{uri}!{k}",
                uri,
                "raw",
                at,
                CIFAR_PIXELS,
                member="32,32,3,planes",
                label=label,
                split=CIFAR_SPLITS[name],
            )


def _npz(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """MedMNIST's: labels N x 1 are classes; N x L with L over 1 say of each of L classes whether it is there (ChestMNIST), none of them
    perhaps."""
    fs, path = storage.fs(uri)
    try:
        with storage.retry(uri, lambda: fs.open(path, "rb")) as raw, zipfile.ZipFile(raw) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{uri}: not an npz file ({error})") from error
    splits: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "val"), ("test", "test"))
    found = [(name, split) for name, split in splits if f"{name}_images.npy" in members]
    if not found:
        raise UserError(f"{uri}: no train_images, val_images or test_images in it; it has {', '.join(members[:6])}")
    for name, split in found:
        plain = unzipped(uri, f"{name}_images.npy", storage, work)
        shape, offset = _array(uri, storage.read_range(plain, 0, 4096))
        count = shape[0]
        values = np.empty((count, 0), np.int64)
        if f"{name}_labels.npy" in members:
            data = storage.read(unzipped(uri, f"{name}_labels.npy", storage, work))
            try:
                values = np.atleast_1d(np.load(io.BytesIO(data), allow_pickle=False))
            except ValueError as error:
                raise UserError(f"{uri}: {name}_labels cannot be read: {error}") from error
            values = values.reshape(len(values), -1)
            if len(values) != count:
                raise UserError(f"{uri}: {len(values)} {name} labels for {count} images")
        several = values.shape[1] > 1
        told.classes.update(dict.fromkeys(str(k) for k in range(values.shape[1]) if several))
        for k, own in enumerate(values):
            columns = {"labels": [str(found) for found in np.flatnonzero(own)]} if several else {}
            label = str(own[0]) if len(own) == 1 else None
            yield _picture(f"{uri}!{name}", plain, k, offset, shape[1:], label, split, columns)


def _array(uri: str, head: bytes) -> tuple[tuple[int, ...], int]:
    """(shape as N×H×W×C, where the data begin) of an npy file's head; uint8 in C order."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(stream)
    except ValueError as error:
        raise UserError(f"{uri}: not an npz of arrays: {error}") from error
    if fortran or kind != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise UserError(f"{uri}: images are N x H x W or N x H x W x 3 bytes, not {shape} of {kind}")
    return (*shape, 1)[:4] if len(shape) == 3 else shape, stream.tell()


def _picture(
    name: str,
    plain: str,
    k: int,
    begin: int,
    shape: Sequence[int],
    label: str | None,
    split: Split | None,
    columns: dict[str, Any] | None = None,
) -> Reference:
    height, width, channels = shape
    size = height * width * channels
    member = f"{height},{width},{channels},pixels"
    return Reference(f"{name}!{k}", plain, "raw", begin + k * size, size, member, label, split, columns or {})
