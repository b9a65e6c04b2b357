"""Plain requests to S3 give what fsspec and botocore give, and leave to them whatever goes wrong."""

import dataclasses
import hashlib
from types import SimpleNamespace

import pytest

from mapsto.core import s3 as plain
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage

NAMES = (
    "a.jpg",
    "with space.jpg",
    "plus+and&amp;.jpg",
    "50%25.jpg",
    "Größe-日本.jpg",
    "a~b'(c)!*.jpg",
    "deep/er/x=1?#.bin",
    "packed.json.gz",
)


@pytest.fixture
def rested():
    yield
    plain._rests.clear()


def test_objects_of_any_name_are_written_listed_and_read_as_fsspec_does(s3, rested):
    storage, bucket = s3.storage, s3.uri("plain")
    for k, name in enumerate(NAMES):
        data = bytes([k]) * (k * 1000)
        known = hashlib.sha256(data).hexdigest() if k % 2 else None
        assert plain.write(storage, f"{bucket}/{name}", data, known)
        fs, path = storage.fs(f"{bucket}/{name}")
        assert fs.cat_file(path) == plain.read(storage, f"{bucket}/{name}") == storage.read(f"{bucket}/{name}") == data
    told = sorted(storage.walk(bucket))
    assert told == sorted((f"{bucket}/{name}", k * 1000) for k, name in enumerate(NAMES))
    assert not plain._rests


def test_pages_of_a_listing_are_botocores(s3, rested, monkeypatch):
    bucket = s3.uri("pages")
    names = {f"n {k:04d}" for k in range(1203)}
    for name in names:
        (s3.folder / "pages" / name).write_bytes(b"x")
    s3.stop()  # it remembers its listings
    s3.start()
    storage = s3.storage
    pages, after = [], ""
    while not pages or after:
        found, after = plain.page(storage, "pages", "", after)
        pages.append(found)
    assert [len(page) for page in pages] == [1000, 203]
    with monkeypatch.context() as patch:
        patch.setattr(plain, "page", lambda *asked: None)
        by_botocore = list(storage.walk(bucket))
    assert list(storage.walk(bucket)) == by_botocore == [(f"{bucket}/{name}", 1) for name in sorted(names)]


def test_what_is_not_there_costs_no_rest_and_what_is_refused_rests(s3, rested):
    storage, bucket = s3.storage, s3.uri("refused")
    assert plain.read(storage, f"{bucket}/absent") is None and not plain._rests
    stranger = dataclasses.replace(storage, secret="another")
    assert storage.write(f"{bucket}/x", b"x") is None
    assert plain.read(stranger, f"{bucket}/x") is None
    assert [(who, bucket) for who, _, bucket in plain._rests] == [(stranger, "refused")]
    with pytest.raises(UserError, match=r"refused/x: access refused"):
        stranger.read(f"{bucket}/x")
    with pytest.raises(UserError, match="refused: access refused"):
        list(stranger.walk(bucket))
    with pytest.raises(UserError, match="refused/y: access refused"):
        stranger.write(f"{bucket}/y", b"y")
    assert storage.read(f"{bucket}/x") == b"x"


def test_a_store_that_is_away_rests_and_fsspec_waits_for_it(s3, rested, monkeypatch):
    storage, bucket = s3.storage, s3.uri("away")
    storage.write(f"{bucket}/x", b"x")
    s3.stop()
    monkeypatch.setattr("mapsto.core.storage.time", SimpleNamespace(sleep=lambda seconds: s3.start()))
    assert storage.read(f"{bucket}/x") == b"x"
    assert [(who, bucket) for who, _, bucket in plain._rests] == [(storage, "away")]
    plain._rests.clear()  # a minute later
    assert plain.read(storage, f"{bucket}/x") == b"x"


@pytest.mark.parametrize("how", ["proxy", "no keys"])
def test_a_proxy_and_keys_that_are_not_there_are_left_to_fsspec(s3, monkeypatch, how):
    storage = Storage(endpoint_url=s3.endpoint, retries=1)  # none of the other tests'
    if how == "proxy":
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "")
    else:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert plain._asker.__wrapped__(storage, ()) is None


def test_another_endpoint_in_the_environment_is_another_store(s3, rested, monkeypatch):
    storage = Storage()
    bucket = s3.uri("elsewhere")
    storage.write(f"{bucket}/x", b"x")
    assert plain.read(storage, f"{bucket}/x") == b"x"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert plain.read(storage, f"{bucket}/x") is None


@pytest.mark.parametrize("uri", ["s3://b", "s3://b/", "s3://b/k/", "s3://b/a/../c", "s3://b/./c", "s3://b//c"])
def test_keys_that_urls_would_change_are_left_to_fsspec(s3, uri):
    assert plain._path(uri) == "" and plain.read(s3.storage, uri) is None and not plain.write(s3.storage, uri, b"")


@pytest.mark.parametrize(
    "body",
    [
        b"<html/>",
        b"no xml",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>",
    ],
)
def test_answers_that_are_no_whole_listing_are_left_to_botocore(monkeypatch, body):
    monkeypatch.setattr(plain, "_answer", lambda *asked: body)
    assert plain.page(Storage(), "b", "", "") is None


def test_an_empty_page_is_one(monkeypatch):
    listing = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents><Key>a</Key><Size/></Contents></ListBucketResult>'
    monkeypatch.setattr(plain, "_answer", lambda *asked: listing)
    assert plain.page(Storage(), "b", "", "") == ([("a", 0)], "")


def test_anonymous_requests_are_not_signed_and_a_token_goes_along(s3, monkeypatch):
    sent = []

    class Pool:
        def __init__(self, **settings):
            pass

        def request(self, method, url, headers, **more):
            sent.append((method, url, {name.lower(): value for name, value in headers.items()}))
            return SimpleNamespace(status=200, data=b"")

    monkeypatch.setattr("urllib3.PoolManager", Pool)
    for storage in (
        Storage(endpoint_url=s3.endpoint, anonymous=True),
        Storage(s3.endpoint, key="k", secret="s", token="t"),
    ):
        assert plain._asker.__wrapped__(storage, ())("b/k", None, None) == (200, b"")
    (_, url, bare), (_, _, signed) = sent
    assert url == f"{s3.endpoint}/b/k" and "authorization" not in bare
    assert signed["x-amz-security-token"] == "t" and "Credential=k/" in signed["authorization"]
