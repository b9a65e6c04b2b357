"""Zips as a stream against `zipfile`, which holds the whole directory."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsto.core.storage import Storage
from mapsto.data.reading import fetch
from mapsto.data.sources import listing
from mapsto.data.zips import Member, members, opened

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


def written(entries, comment=b"", ahead=b"") -> bytes:
    out = io.BytesIO()
    out.write(ahead)
    with zipfile.ZipFile(out, "a" if ahead else "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        archive.comment = comment
        for name, data, method in entries:
            archive.writestr(name, data, method)
    return out.getvalue()


def check(data: bytes) -> list[Member]:
    """The same members and contents as `zipfile` has."""
    raw = io.BytesIO(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos, found = archive.infolist(), list(members(raw))
        assert [(m.name, m.offset, m.size, m.compressed, m.method, m.crc, m.mode) for m in found] == [
            (i.filename, i.header_offset, i.file_size, i.compress_size, i.compress_type, i.CRC, i.external_attr >> 16)
            for i in infos
        ]
        for member, info in zip(found, infos, strict=True):
            packed = (member.method, member.compressed, member.crc)
            with opened(raw, member.name, member.offset, member.size, packed) as file:
                assert file.read() == archive.read(info)
    return found


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=400), st.sampled_from(METHODS)), max_size=5),
    st.binary(max_size=40).filter(lambda comment: b"PK" not in comment),
    st.sampled_from([b"", b"#!/bin/sh\nexit\n"]),
)
def test_members_are_those_of_zipfile(entries, comment, ahead):
    assert len(check(written(entries, comment, ahead))) == len(entries)


def test_sizes_and_places_of_64_bits(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    data = written([(f"{k}.bin", bytes([k]) * 100, METHODS[k % 2]) for k in range(5)], b"a comment")
    assert b"PK\x06\x07" in data and [m.size for m in check(data)] == [100] * 5


@pytest.mark.parametrize("cut", [1, 10, 30, 90])
def test_a_directory_that_is_damaged_is_told(cut):
    data = written([("a.bin", b"x" * 50, 0), ("b.bin", b"y", 0)])
    with pytest.raises(zipfile.BadZipFile):
        list(members(io.BytesIO(data[:-cut])))
    end = data.rindex(b"PK\x05\x06")
    place = data.index(b"PK\x01\x02")
    for broken in (
        data[:place] + b"XX" + data[place + 2 :],
        data[: end + 12] + struct.pack("<L", 2**31) + data[end + 16 :],
        b"",
    ):
        with pytest.raises(zipfile.BadZipFile):
            list(members(io.BytesIO(broken)))


def moved(data: bytes, number: int, offset: int) -> bytes:
    """The archive with another offset in the directory's entry."""
    place = -1
    for _ in range(number + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return data[: place + 42] + struct.pack("<L", offset) + data[place + 46 :]


def test_members_that_overlap_or_lie_elsewhere_are_kept_apart(tmp_path):
    data = written([(f"cat/{k}.png", bytes([k]) * 500, 0) for k in range(4)])
    first, second, *_ = members(io.BytesIO(data))
    path = tmp_path / "x.zip"

    def contents(data: bytes) -> dict[str, bytes | str]:
        path.write_bytes(data)
        store = Storage(retries=0)
        references = list(listing("archive", str(path), store, str(tmp_path / "work")))
        return {r.name.rsplit("/", 1)[-1]: got for r, got in fetch(references, store)}

    whole = {f"{k}.png": bytes([k]) * 500 for k in range(4)}
    assert contents(data) == whole
    refused = "it overlaps another member: refused"
    assert contents(moved(data, 1, first.offset)) == whole | {"0.png": refused, "1.png": refused}
    assert contents(moved(data, 0, second.offset - 40)) == whole | {"0.png": refused, "1.png": refused}
    beyond = contents(moved(data, 3, len(data) + 5))
    behind = {"3.png": "cannot be read from the archive: it lies behind the archive's end"}
    assert beyond == whole | behind
    assert contents(moved(data, 3, 0xFFFFFFFE)) == whole | behind
    named = written([("cat/é.png", b"x", 0), ("cat/b.png", b"y", 0)])
    place = named.index("é.png".encode())
    assert contents(named[:place] + b"\xff" + named[place + 1 :])["b.png"] == b"y"
    other = data.replace(b"cat/2.png", b"cat/9.png", 1)  # in its own header
    assert contents(other)["2.png"] == "cannot be read from the archive: it has another name than in the directory"
