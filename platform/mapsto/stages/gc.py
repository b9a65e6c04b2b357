"""Garbage: what lies under a root and no artifact refers to. Found first, deleted only when asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..core.artifact import WORK, Artifact
from ..core.errors import UserError
from ..core.storage import Storage, absolute, join
from .tree import Node, nodes, place

OLDER_THAN_H = 24.0
"""What was written to within so many hours may be a run's that is under way."""
LEFT_OVER = (WORK, "ray")
"""Folders that go when a stage is done."""
UNFINISHED = "unfinished: artifact.json is missing"
_PART = re.compile(r"\..+\.\d+\.part$")
"""A local file that was being written when its process was killed."""


@dataclass(frozen=True)
class Garbage:
    uri: str
    bytes: int
    reason: str
    upload: str = ""
    """The id of an unfinished multipart upload to `uri`; then it is no file."""


@dataclass(frozen=True)
class Held:
    """A file below an artifact."""

    uri: str
    bytes: int
    written: datetime


def gc(
    root: str, storage: Storage | None = None, *, yes: bool = False, older_than: float = OLDER_THAN_H
) -> Iterator[str]:
    """List what no artifact refers to, with size and reason, and with `yes` delete it; yields lines to show.

    `older_than`, in hours: what was written to since stays. Raises UserError for an artifact that cannot be read, and for a
    folder that is no root.
    """
    storage, root = storage or Storage(), absolute(root).rstrip("/")
    if not older_than >= 0:
        raise UserError(f"gc --older-than {older_than}: hours, 0 or more")
    found = list(garbage(root, storage, older_than))
    for each in found:
        yield f"{_size(each.bytes):>10}  {each.uri}: {each.reason}"
    total = f"{len(found)} things, {_size(sum(each.bytes for each in found))}"
    if not yes:
        yield f"{total}; nothing was deleted{'; --yes deletes them' if found else ''}"
        return
    for each in found:
        if each.upload:
            abort(storage, each)
        elif each.reason == UNFINISHED:
            Artifact(each.uri, storage).remove()
        else:
            storage.delete(each.uri)
    yield f"{total}: deleted"


def garbage(root: str, storage: Storage, older_than: float = OLDER_THAN_H) -> Iterator[Garbage]:
    """What may go. Every artifact is read before the first is yielded, so that nothing goes where one cannot be."""
    every = list(nodes(root, storage))
    if not every:
        raise UserError(
            f"{root}: no artifact here, root/name/stage/fingerprint; gc looks at the whole `root` of a recipe"
        )
    named = set()
    for each in every:
        if each.finished:
            _ = each.meta
        if each.holds_data:
            own = place(each.uri) + "/"  # an unfinished one does not keep itself alive
            places = {place(uri) for _, uri, _ in each.files()}
            named |= {at for at in places if each.finished or not at.startswith(own)}
    now = datetime.now(UTC)

    def old(when: datetime) -> bool:
        return (now - when).total_seconds() >= older_than * 3600

    for each in every:
        yield from _of_artifact(each, held(storage, each.uri), named, old)
    yield from (upload for upload, when in uploads(root, storage) if old(when))


def _of_artifact(each: Node, files: list[Held], named: set[str], old: Any) -> Iterator[Garbage]:
    if not each.finished:
        if files and old(max(file.written for file in files)) and not any(place(file.uri) in named for file in files):
            yield Garbage(each.uri, sum(file.bytes for file in files), UNFINISHED)
        return
    gone = set()
    for name in LEFT_OVER:
        inside = [file for file in files if file.uri.startswith(each.artifact.path(name) + "/")]
        if (
            inside
            and old(max(file.written for file in inside))
            and not any(place(file.uri) in named for file in inside)
        ):
            gone |= {file.uri for file in inside}
            yield Garbage(each.artifact.path(name), sum(file.bytes for file in inside), "a finished stage's left-overs")
    for file in files:
        if file.uri in gone or place(file.uri) in named or not old(file.written):
            continue
        folder, _, name = file.uri.rpartition("/")
        if _PART.match(name):
            yield Garbage(file.uri, file.bytes, "a write that was cut off")
        elif each.holds_data and folder == each.artifact.path("shards"):
            yield Garbage(file.uri, file.bytes, "a shard that no version names")


def held(storage: Storage, uri: str) -> list[Held]:
    """Every file below a folder, with its size and the time it was last written, by the store's clock."""
    fs, path = storage.fs(uri)
    found: Mapping[str, Mapping[str, Any]] = storage.retry(uri, lambda: fs.find(path, detail=True))
    return [
        Held(join(uri, name[len(path.rstrip("/")) :]), int(info.get("size") or 0), _time(info))
        for name, info in sorted(found.items())
    ]


def _time(info: Mapping[str, Any]) -> datetime:
    """Now where the store does not tell: what has no age is not old."""
    when = next((info[name] for name in ("LastModified", "mtime", "last_modified", "updated") if info.get(name)), None)
    if isinstance(when, (int, float)):
        return datetime.fromtimestamp(when, UTC)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    return datetime.now(UTC)


def uploads(root: str, storage: Storage) -> Iterator[tuple[Garbage, datetime]]:
    """Unfinished multipart uploads below an `s3://` root, with the bytes of their parts; none elsewhere."""
    if not root.startswith(("s3://", "s3a://")):
        return
    bucket, _, prefix = root.split("://", 1)[1].partition("/")
    client, marker = storage.client(), {}
    while True:
        ask = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", **marker}
        page = storage.retry(root, lambda ask=ask: client.list_multipart_uploads(**ask))
        for each in page.get("Uploads", ()):
            key = {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]}
            parts = storage.retry(root, lambda key=key: client.list_parts(**key)).get("Parts", ())
            size = sum(part["Size"] for part in parts)
            uri = f"s3://{bucket}/{each['Key']}"
            yield (
                Garbage(uri, size, "an upload that was cut off", each["UploadId"]),
                _time({"updated": each["Initiated"]}),
            )
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}


def abort(storage: Storage, upload: Garbage) -> None:
    bucket, _, key = upload.uri.split("://", 1)[1].partition("/")
    client = storage.client()
    storage.retry(upload.uri, lambda: client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.upload))


def _size(count: int) -> str:
    return f"{count:,} B" if count < 2**20 else f"{count / 2**20:,.1f} MiB"
