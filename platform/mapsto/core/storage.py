"""Any URI that fsspec opens: plain paths, `file://`, `s3://`, and `gs://`, `abfs://` with their extras.

Keys come from the environment or the recipe's `storage` section; they are held in memory only, and no repr shows them.
Transient errors are retried with backoff, a bounded number of times; the rest become one clear line.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import s3
from .as_json import as_json
from .errors import UserError
from .local import walk_files

if TYPE_CHECKING:
    import fsspec

T = TypeVar("T")
log = logging.getLogger("mapsto.storage")

PART = ".part"
"""How the names of local files end, hidden, that are being written: a process that was killed leaves them."""
GLANCE = 1000
"""Names that `glance` returns at most: a page of S3's listing."""
TRANSIENT = (
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "Timeout",
    "timed out",
    "reset by peer",
    "Connection reset",
    "Server disconnected",
    "IncompleteRead",
    "Connection closed",
    "ConnectionClosed",
    "Could not connect",
    "Connect call failed",
    "ClientPayloadError",
    "EndpointConnectionError",
)

SERVER = re.compile(r"(HTTP status |\(|, status=)50[0234]\b")
"""As Arrow, botocore and aiohttp write an answer's status; a path may hold the same digits."""


@dataclass(frozen=True)
class Storage:
    """How to reach object stores. Picklable: it travels to the workers inside tasks, in memory."""

    endpoint_url: str | None = None
    region: str | None = None
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    anonymous: bool = False
    retries: int = 6
    """Further tries after a transient error, with 0.5, 1, 2, 4, 8, 8, ... seconds between: a store may be away for 20 s."""

    def fs(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system and its path for a URI."""
        import fsspec

        protocol = uri.split("://", 1)[0] if "://" in uri else "file"
        try:
            return fsspec.core.url_to_fs(uri, **self.options(protocol))
        except (ImportError, ValueError) as error:
            extras = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "az": "azure"}
            hint = f"; install mapsto[{extras[protocol]}]" if protocol in extras else ""
            raise UserError(f"{uri}: {str(error).splitlines()[0]}{hint}") from error

    def options(self, protocol: str) -> dict[str, Any]:
        if protocol == "file":
            return {"auto_mkdir": True}
        if protocol not in ("s3", "s3a"):
            return {}
        client: dict[str, Any] = {}
        if self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL"):
            client["endpoint_url"] = self.endpoint_url or os.environ["AWS_ENDPOINT_URL"]
        if self.region or os.environ.get("AWS_REGION"):
            client["region_name"] = self.region or os.environ["AWS_REGION"]
        return {
            "key": self.key,
            "secret": self.secret,
            "token": self.token,
            "anon": self.anonymous,
            "client_kwargs": client,
            "use_listings_cache": False,
            "default_fill_cache": False,
            # Checksums "when_required": older gateways (Ceph's) do not know the newer ones, and some (rclone) answer a
            # range with the whole object's, which botocore then finds wrong.
            "config_kwargs": {
                "connect_timeout": 5,
                "read_timeout": 60,
                "retries": {"max_attempts": 2, "mode": "standard"},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        }

    def retry(self, uri: str, action: Callable[[], T]) -> T:
        """Run `action`, again after transient errors; any other error becomes a UserError that names the URI."""
        for attempt in range(self.retries + 1):
            try:
                return action()
            except UserError:
                raise
            except Exception as error:  # every library has its own errors; each is translated or raised again
                if attempt < self.retries and _transient(error):
                    wait = min(0.5 * 2**attempt, 8.0)
                    log.warning(
                        "%s: %s; try %d of %d in %.1f s", uri, _line(error), attempt + 2, self.retries + 1, wait
                    )
                    time.sleep(wait)
                    continue
                told = explain(uri, error)
                if isinstance(told, UserError):
                    told.outside = not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
                raise told from error
        raise AssertionError("unreachable")

    def read(self, uri: str) -> bytes:
        if uri.startswith(("s3://", "s3a://")) and (data := s3.read(self, uri)) is not None:
            return data
        fs, path = self.fs(uri)
        return self.retry(uri, lambda: fs.cat_file(path))

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        fs, path = self.fs(uri)
        return self.retry(uri, lambda: fs.cat_file(path, start=start, end=end))

    def write(self, uri: str, data: bytes, sha256: str | None = None) -> None:
        """Write a whole object: it is there complete or not at all (a local file is renamed into place). `sha256`: the data's, where
        it is known, in hexadecimal."""
        if uri.startswith(("s3://", "s3a://")) and s3.write(self, uri, data, sha256):
            return
        fs, path = self.fs(uri)
        if _local(fs):
            self.retry(uri, lambda: _whole(Path(path), lambda part: part.write_bytes(data)))
        else:
            self.retry(uri, lambda: fs.pipe_file(path, data))

    def upload(self, local: str | Path, uri: str) -> None:
        """Copy a local file to a URI, streaming; it is there complete or not at all."""
        fs, path = self.fs(uri)
        if _local(fs):
            self.retry(uri, lambda: _whole(Path(path), lambda part: shutil.copyfile(local, part)))
        else:
            self.retry(uri, lambda: fs.put_file(str(local), path))

    def download(self, uri: str, local: str | Path) -> None:
        fs, path = self.fs(uri)
        Path(local).parent.mkdir(parents=True, exist_ok=True)
        self.retry(uri, lambda: fs.get_file(path, str(local)))

    def read_json(self, uri: str) -> Any:
        return json.loads(self.read(uri))

    def write_json(self, uri: str, value: Any) -> None:
        """What is no finite number is written as null."""
        self.write(uri, as_json(value, indent=1).encode())

    def exists(self, uri: str) -> bool:
        """Whether an object (not a folder) is there; refused or unreachable storage raises UserError."""
        fs, path = self.fs(uri)

        def ask() -> bool:
            try:
                return fs.info(path)["type"] == "file"
            except FileNotFoundError:
                return False

        return self.retry(uri, ask)

    def names(self, uri: str) -> list[str]:
        """Names directly under a folder, sorted; empty when there is none."""
        fs, path = self.fs(uri)

        def ask() -> list[str]:
            try:
                found = fs.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = (name.rstrip("/").rsplit("/", 1)[-1] for name in found if name.rstrip("/") != path.rstrip("/"))
            return sorted(name for name in names if not (name.startswith(".") and name.endswith(PART)))

        return self.retry(uri, ask)

    def parts(self, uri: str) -> list[str]:
        """What killed processes left half-written below a local folder (`PART`), sorted; none elsewhere."""
        fs, path = self.fs(uri)
        if not _local(fs):
            return []

        def raising(error: OSError) -> None:
            raise error

        def look() -> list[str]:
            found = (join(folder, name) for folder, _, names in os.walk(path, onerror=raising) for name in names)
            return sorted(name for name in found if Path(name).name.startswith(".") and name.endswith(PART))

        return self.retry(uri, look)

    def walk(self, uri: str) -> Iterator[tuple[str, int]]:
        """Stream (URI, size in bytes) of every object below a folder: S3's in its own order, elsewhere a folder's files by
        name, then its folders by name. Never holds all names (of S3 a page, of a local disk 50,000; other stores list folder by
        folder). Raises UserError for a folder that cannot be listed."""
        fs, path = self.fs(uri)
        if "s3" in _protocols(fs):
            yield from self._walk_s3(uri, path)
            return
        self.retry(uri, lambda: fs.info(path))  # `exists` swallows why not
        prefix = (
            uri[: len(uri) - len(path)] if uri.endswith(path) else (f"{uri.split('://')[0]}://" if "://" in uri else "")
        )
        if _local(fs):
            named = partial(_named, self.retry, prefix)
            yield from ((f"{prefix}{name}", size) for name, size in walk_files(path.rstrip("/"), named))
            return
        folders = [path]
        while folders:
            folder = folders.pop().rstrip("/")
            found = self.retry(f"{prefix}{folder}", partial(fs.ls, folder or "/", detail=True))
            entries = {str(entry["name"]).rstrip("/"): entry for entry in found}
            below = []
            for name in sorted(entries):
                if entries[name]["type"] == "directory":
                    below += [name] if name != folder else []  # some stores list a folder's own mark
                else:
                    last = "" if name == folder else name.rsplit("/", 1)[-1]
                    yield f"{prefix}{folder}/{last}", int(entries[name].get("size") or 0)
            folders += reversed(below)

    def _walk_s3(self, uri: str, path: str) -> Iterator[tuple[str, int]]:
        bucket, _, prefix = path.partition("/")
        prefix = prefix.rstrip("/") + "/" if prefix else ""
        after = ""
        while True:
            if (page := s3.page(self, bucket, prefix, after)) is None:
                marker = {"ContinuationToken": after} if after else {}
                told = self.retry(uri, partial(self.client().list_objects_v2, Bucket=bucket, Prefix=prefix, **marker))
                found = [(entry["Key"], entry["Size"]) for entry in told.get("Contents", ())]
                page = found, told["NextContinuationToken"] if told.get("IsTruncated") else ""
            for key, size in page[0]:
                if not key.endswith("/"):
                    yield f"s3://{bucket}/{key}", size
            after = page[1]
            if not after:
                return

    def glance(self, uri: str) -> list[str]:
        """The first names directly under a folder, at most 1,000 and by one request of S3; empty when there is none."""
        fs, path = self.fs(uri)
        if "s3" in _protocols(fs):
            bucket, _, prefix = path.partition("/")
            prefix = prefix.rstrip("/") + "/" if prefix else ""
            ask = partial(self.client().list_objects_v2, Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=GLANCE)
            page = self.retry(uri, ask)
            found = [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
            found += [entry["Key"] for entry in page.get("Contents", ()) if entry["Key"] != prefix]
            return sorted(name[len(prefix) :].rstrip("/") for name in found)[:GLANCE]
        if _local(fs):
            try:
                with os.scandir(path) as entries:
                    return sorted(entry.name for entry in islice(entries, GLANCE))
            except (FileNotFoundError, NotADirectoryError):
                return []
        return self.names(uri)[:GLANCE]

    def client(self) -> Any:
        """A plain client of S3, for what fsspec does not ask."""
        return s3.client(self)

    def delete(self, uri: str) -> None:
        """Remove a file or a folder with all below it; absent is fine."""
        fs, path = self.fs(uri)

        def remove() -> None:
            with suppress(FileNotFoundError):
                fs.rm(path, recursive=True)

        self.retry(uri, remove)

    def arrow(self, uri: str) -> tuple[Any, str]:
        """The same as a pyarrow file system and its path (Ray Train's storage, Parquet)."""
        from pyarrow.fs import LocalFileSystem, PyFileSystem

        from .arrow import Handler

        fs, path = self.fs(uri)
        return (LocalFileSystem() if _local(fs) else PyFileSystem(Handler(fs))), path


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A plain path made absolute; a URI stays as it is. Workers do not share the driver's working directory."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def explain(uri: str, error: BaseException) -> BaseException:
    """One clear line for a storage error, or the error itself when it is none."""
    text = f"{type(error).__name__}: {error}"
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code", "")) if hasattr(error, "response") else ""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return UserError(f"{uri}: no space left on the device; free some, or set `root` elsewhere")
    if code == "NoSuchBucket" or "NoSuchBucket" in text or "bucket does not exist" in text:
        return UserError(f"{uri}: the bucket does not exist; create it, or mend the URI")
    if isinstance(error, PermissionError) or code in (
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "403",
    ):
        return UserError(f"{uri}: access refused; check the key, its rights and the endpoint ({_line(error)})")
    if "NoCredentials" in text or "Unable to locate credentials" in text:
        return UserError(
            f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `storage` in the recipe"
        )
    if isinstance(error, FileNotFoundError):
        if isinstance(
            error.__cause__, OSError
        ):  # HTTP's file system makes one of any error, of a refused connection, too
            return explain(uri, error.__cause__)
        return UserError(f"{uri}: not found")
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return UserError(f"{uri}: {_line(error)}")
    if (
        "Could not connect" in text
        or "EndpointConnectionError" in text
        or "Connect call failed" in text
        or "Cannot connect" in text
    ):
        return UserError(
            f"{uri}: the storage endpoint cannot be reached ({_line(error)}); check `storage.endpoint_url`"
        )
    if isinstance(error, OSError) or code:
        return UserError(f"{uri}: {_line(error)}")
    return error


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _transient(error: BaseException) -> bool:
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return False
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return False
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, (ConnectionError, TimeoutError)) or SERVER.search(text):
        return True
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)  # botocore's, in s3fs's
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(response, dict) else 0
    return status in (500, 502, 503, 504) or any(word in text for word in TRANSIENT)


def _named(retry: Callable[[str, Callable[[], T]], T], prefix: str, path: str, action: Callable[[], T]) -> T:
    return retry(f"{prefix}{path}", action)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in _protocols(fs)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a local file under another name, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # a machine that loses its power may else have the name, without the bytes
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
