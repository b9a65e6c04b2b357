"""Whole objects of S3, and listings, by plain signed requests: a quarter of the processor time of fsspec's for a photograph, a
fifth of botocore's for a listing of millions.

It only ever makes a request cheaper: whatever goes wrong here, and whatever it does not know (a proxy), the caller asks
fsspec, whose errors, retries and log lines are the ones people see. Signature: AWS Signature Version 4, by botocore.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from mimetypes import guess_type
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_plus, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from .storage import Storage

LARGEST = 2**30
"""Bytes that are written by one request."""
REST = 60.0
"""Seconds for which a store is left to fsspec after an error."""
SET = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
"""Another store, or another right, where one of these is another."""
_rests: dict[tuple[Storage, tuple[str | None, ...], str], float] = {}
"""Store, environment and bucket → the monotonic time until which they are left to fsspec."""
_opening = threading.Lock()
"""Many threads read at once: the first of them opens."""


def read(storage: Storage, uri: str) -> bytes | None:
    """An object's bytes; None where fsspec is to be asked."""
    path = _path(uri)
    return _answer(storage, path) if path else None


def write(storage: Storage, uri: str, data: bytes, sha256: str | None = None) -> bool:
    """Whether an object was written, in one request; otherwise fsspec is to be asked. `sha256`: the data's, where it is known, in
    hexadecimal: the store checks it."""
    path = _path(uri)
    return bool(path) and len(data) <= LARGEST and _answer(storage, path, data, sha256) is not None


def _path(uri: str) -> str:
    """`bucket/key`, percent-encoded; "" where there is no key, or one that ways of writing URLs would change."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    plain = key and not key.endswith("/") and not any(part in ("", ".", "..") for part in key.split("/"))
    return quote(f"{bucket}/{key}", safe="/~") if plain else ""


def page(storage: Storage, bucket: str, prefix: str, after: str) -> tuple[list[tuple[str, int]], str] | None:
    """(keys with their sizes in bytes, what to go on with; "" at the end) of a listing's page: up to 1,000 below `prefix`, from
    `after` on. None where botocore is to be asked. Source: ListObjectsV2 of the Amazon S3 API reference."""
    import defusedxml.ElementTree

    asked = {"encoding-type": "url", "list-type": "2", "prefix": prefix} | (
        {"continuation-token": after} if after else {}
    )
    body = _answer(storage, f"{bucket}?{urlencode(sorted(asked.items()), quote_via=quote, safe='~')}")
    if body is None:
        return None
    try:
        root = defusedxml.ElementTree.fromstring(body)
    except (defusedxml.ElementTree.ParseError, defusedxml.DefusedXmlException):
        return None
    space = root.tag[: root.tag.find("}") + 1]
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    found = [
        (decode(each.findtext(f"{space}Key", "")), each.findtext(f"{space}Size") or "0")
        for each in root.iter(f"{space}Contents")
    ]
    more = root.findtext(f"{space}NextContinuationToken", "")
    whole = root.findtext(f"{space}IsTruncated") != "true"
    if root.tag != f"{space}ListBucketResult" or not (whole or more) or not all(size.isdecimal() for _, size in found):
        return None
    return [(key, int(size)) for key, size in found], "" if whole else more


def _answer(storage: Storage, path: str, data: bytes | None = None, sha256: str | None = None) -> bytes | None:
    """What a store answers to a GET of `bucket/key`, or of `bucket?query`, or to a PUT of `data`; None where that is not 200."""
    environment = _environment()
    place = storage, environment, path.replace("?", "/").split("/", 1)[0]
    if time.monotonic() < _rests.get(place, 0.0):
        return None
    with _opening:
        ask = _asker(storage, environment)
    status, body = ask(path, data, sha256) if ask else (404, b"")
    if status == 200:
        return body
    if status != 404:
        _rests[place] = time.monotonic() + REST
    return None


def client(storage: Storage) -> Any:
    """A plain client of S3."""
    with _opening:
        return _client(storage, _environment())


def _environment() -> tuple[str | None, ...]:
    return tuple(map(os.environ.get, SET))


@lru_cache(8)
def _client(storage: Storage, environment: tuple[str | None, ...]) -> Any:
    import botocore.config
    import botocore.session
    from botocore import UNSIGNED

    options = storage.options("s3")
    config = botocore.config.Config(
        **options["config_kwargs"], **({"signature_version": UNSIGNED} if storage.anonymous else {})
    )
    return botocore.session.get_session().create_client(
        "s3",
        aws_access_key_id=storage.key,
        aws_secret_access_key=storage.secret,
        aws_session_token=storage.token,
        config=config,
        **options["client_kwargs"],
    )


def _credentials(storage: Storage) -> Any:
    """As botocore has them (a role's renew themselves): the recipe's, or those of the environment, a profile, a role. None where
    there are none."""
    import botocore.credentials
    import botocore.session

    if storage.key and storage.secret:
        return botocore.credentials.Credentials(storage.key, storage.secret, storage.token)
    return botocore.session.get_session().get_credentials()


@lru_cache(8)
def _asker(
    storage: Storage, environment: tuple[str | None, ...]
) -> Callable[[str, bytes | None, str | None], tuple[int, bytes]] | None:
    """`ask("bucket/key", data, sha256)`, percent-encoded, PUT where there is data → (status, body), status 0 where there was no
    answer; from any thread. None where a proxy is set, or there are no keys. `environment`: the values of SET, another store where they are others."""
    import urllib3
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError
    from botocore.httpsession import get_cert_path
    from urllib3.exceptions import HTTPError

    try:
        meta = _client(storage, environment).meta
        credentials = None if storage.anonymous else _credentials(storage)
    except (BotoCoreError, ValueError):
        return None
    endpoint = meta.endpoint_url.rstrip("/")
    parts = urlsplit(endpoint)
    proxied = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if proxied or (credentials is None and not storage.anonymous):
        return None
    region = meta.region_name

    class Signer(S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:
            return request.context.get("sha256") or super().payload(request)

    region = region if region not in (None, "aws-global") else "us-east-1"
    pool = urllib3.PoolManager(
        maxsize=32,
        timeout=urllib3.Timeout(connect=5, read=60),
        retries=urllib3.Retry(total=1, connect=0, redirect=False, status=0),
        ca_certs=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or get_cert_path(True),
    )

    def ask(path: str, data: bytes | None, sha256: str | None) -> tuple[int, bytes]:
        url = f"{endpoint}/{path}"
        method = "GET" if data is None else "PUT"
        kind = {} if data is None else {"Content-Type": guess_type(path)[0] or "application/octet-stream"}
        request = AWSRequest(method, url, headers=kind, data=data)
        request.context["sha256"] = sha256
        try:
            if credentials is not None:
                Signer(credentials.get_frozen_credentials(), "s3", region).add_auth(request)
            answer = pool.request(method, url, body=data, headers=dict(request.headers.items()), decode_content=False)
        except (HTTPError, BotoCoreError, OSError, ValueError):
            return 0, b""
        return answer.status, answer.data

    return ask
