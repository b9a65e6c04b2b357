import errno
import math
import os
import pickle
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from mapsto.core.artifact import Artifact, fingerprint
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage, absolute, join


def test_written_objects_come_back_and_are_listed(tmp_path):
    storage = Storage()
    for name in ("b/2.txt", "a/1.txt", "a/3.txt"):
        storage.write(join(str(tmp_path), name), name.encode())
    found = sorted(storage.walk(str(tmp_path)))
    assert [(uri.removeprefix(f"{tmp_path}/"), size) for uri, size in found] == [
        ("a/1.txt", 7),
        ("a/3.txt", 7),
        ("b/2.txt", 7),
    ]
    assert [storage.read(uri) for uri, _ in found] == [b"a/1.txt", b"a/3.txt", b"b/2.txt"]
    assert storage.names(str(tmp_path)) == ["a", "b"]
    assert storage.read_range(found[0][0], 2, 5) == b"1.t"
    assert not storage.exists(join(str(tmp_path), "a"))
    storage.delete(join(str(tmp_path), "a"))
    assert storage.names(str(tmp_path)) == ["b"]


def test_a_walk_goes_by_name_whatever_the_disk_says_first(tmp_path, monkeypatch):
    for name in ("b/z/2", "b/1", "a/3", "c", "a.b/4"):
        Storage().write(join(str(tmp_path), name), b"x")
    told = [f"{tmp_path}/{name}" for name in ("c", "a/3", "a.b/4", "b/1", "b/z/2")]
    assert [uri for uri, _ in Storage().walk(str(tmp_path))] == told

    class Backwards:
        def __init__(self, path):
            self.scan = scandir(path)

        def __enter__(self):
            return iter(sorted(self.scan, key=lambda entry: entry.name, reverse=True))

        def __exit__(self, *error):
            self.scan.close()

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Backwards)
    assert [uri for uri, _ in Storage().walk(str(tmp_path))] == told


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EACCES, "access refused"), (errno.EIO, "Input/output error"), (errno.ENOENT, "not found")]
)  # fmt: skip
def test_a_folder_that_cannot_be_listed_is_named_and_not_left_out(tmp_path, monkeypatch, number, reason):
    for name in ("a/1.txt", "b/2.txt"):
        Storage().write(join(str(tmp_path), name), b"x")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("/b"):
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=f"^{tmp_path}/b: .*{reason}"):
        list(Storage(retries=0).walk(str(tmp_path)))


def test_a_glance_shows_the_first_names_only(tmp_path, s3, monkeypatch):
    places = [(Storage(), str(tmp_path)), (s3.storage, s3.uri("glance"))]
    for storage, root in places:
        for name in ("b/2.txt", "a/1.txt", "a/3.txt", "c.txt"):
            storage.write(join(root, "below", name), b"x")
        assert storage.glance(join(root, "below")) == ["a", "b", "c.txt"]
        assert storage.glance(join(root, "nowhere")) == []
    monkeypatch.setattr("mapsto.core.storage.GLANCE", 2)
    for storage, root in places:
        assert len(storage.glance(join(root, "below"))) == 2


def test_a_file_uri_and_a_path_are_the_same_place(tmp_path):
    Storage().write(f"file://{tmp_path}/x", b"1")
    assert Storage().read(str(tmp_path / "x")) == b"1"
    assert list(Storage().walk(f"file://{tmp_path}")) == [(f"file://{tmp_path}/x", 1)]


def test_secrets_never_show_and_survive_pickling():
    storage = Storage(key="AKIA", secret="hush", token="tok")
    assert not any(word in repr(storage) for word in ("AKIA", "hush", "tok'"))
    assert pickle.loads(pickle.dumps(storage)) == storage


def test_transient_errors_are_retried_and_lasting_ones_named(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError("Connection reset by peer")
        return "there"

    assert Storage(retries=2).retry("s3://b/k", flaky) == "there"
    calls.clear()
    with pytest.raises(UserError, match="s3://b/k"):
        Storage(retries=1).retry("s3://b/k", flaky)
    with pytest.raises(UserError, match="/nowhere/x: not found"):
        Storage().read("/nowhere/x")
    with pytest.raises(ZeroDivisionError):
        Storage().retry("x", lambda: 1 / 0)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (
            OSError(errno.EIO, "An error occurred (503) when calling the HeadObject operation: Service Unavailable"),
            True,
        ),
        (OSError("When reading s3://b/k: AWS Error UNKNOWN (HTTP status 502) during GetObject operation"), True),
        (ClientError({"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": 500}}, "GetObject"), True),
        (TimeoutError("Connect timeout"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/artifacts/train/a503b500/model"), False),
        (OSError(errno.EIO, "cannot read /artifacts/train/a503b500/model"), False),
        (
            ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject"),
            False,
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_worth_another_try(error, again, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = []

    def fail():
        calls.append(1)
        raise error

    with pytest.raises(Exception):  # noqa: B017  # any: only the tries count here
        Storage(retries=1).retry("s3://b/k", fail)
    assert len(calls) == 1 + again


def test_to_arrow_a_store_that_is_away_is_no_file_that_is_gone():
    storage = Storage(endpoint_url="http://127.0.0.1:9", key="k", secret="s", retries=0)  # nobody listens there
    filesystem, path = storage.arrow("s3://bucket/key")
    with pytest.raises(UserError, match="s3://bucket/key: the storage endpoint cannot be reached"):
        storage.retry("s3://bucket/key", lambda: filesystem.open_input_file(path))
    assert type(pickle.loads(pickle.dumps(filesystem)).handler) is type(filesystem.handler)


def test_an_object_that_is_gone_is_not_found(s3):
    uri = f"{s3.uri('gone')}/key"
    for ask in (s3.storage.read, lambda uri: s3.storage.download(uri, "/dev/null")):
        with pytest.raises(UserError) as told:
            ask(uri)
        assert str(told.value) == f"{uri}: not found"


def test_to_arrow_a_file_that_is_gone_is_not_found(s3):
    filesystem, path = s3.storage.arrow(join(s3.uri("arrow"), "gone"))
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file(path)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="no space left"):
        Storage().write(str(tmp_path / "x"), b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_files_bytes_are_on_the_disk_before_its_name(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("bytes"), sync(number)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("name"), replace(self, to)))
    Storage().write(f"{tmp_path}/a", b"1")
    assert order == ["bytes", "name"]


def test_unknown_protocols_and_missing_extras_are_named():
    with pytest.raises(UserError, match="nope://x"):
        Storage().read("nope://x/y")
    with pytest.raises(UserError, match=r"mapsto\[gcs\]"):
        Storage().read("gs://bucket/key")


def test_paths_become_absolute_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("x/y") == str(tmp_path / "x/y")
    assert absolute("s3://a/b") == "s3://a/b"


def test_what_is_no_finite_number_is_written_as_null(tmp_path):
    storage, uri = Storage(), str(tmp_path / "x.json")
    storage.write_json(uri, {"a": [math.nan, 1.5, (math.inf, {"b": -math.inf})], "c": "NaN", "d": True})
    assert b"NaN," not in storage.read(uri).replace(b'"NaN"', b"")
    assert storage.read_json(uri) == {"a": [None, 1.5, [None, {"b": None}]], "c": "NaN", "d": True}


def test_an_artifact_counts_only_when_finished(tmp_path):
    storage = Storage()
    parent = Artifact(str(tmp_path / "ingest" / "aaaa"), storage)
    parent.begin({"name": "x"}, {}, {})
    assert parent.started()
    assert not parent.complete()
    with pytest.raises(UserError, match=r"artifact.json is missing"):
        parent.meta()
    parent.finish(section={}, parents={}, metrics={"rows": 3}, digest="d1")
    child = Artifact(str(tmp_path / "train" / "bbbb"), storage)
    child.begin({"name": "x"}, {"lr": 1}, {"data.train": parent})
    child.finish(section={"lr": 1}, parents={"data.train": parent}, metrics={}, digest="d2")
    assert child.meta()["parents"] == {"data.train": {"uri": parent.uri, "identity": "aaaa:d1"}}
    assert (child.stage, child.fingerprint) == ("train", "bbbb")


def test_what_a_run_goes_on_with_stays_until_the_artifact_is_finished(tmp_path, monkeypatch):
    made = Artifact(str(tmp_path / "ingest" / "aaaa"), Storage())
    made.begin({}, {}, {})
    made.write(b"x", "work", "listed.json")
    delete, gone = Storage.delete, []

    def watched(self, uri):
        gone.append(
            (uri.removeprefix(made.uri), made.complete(), made.storage.exists(made.path("work", "listed.json")))
        )
        delete(self, uri)

    monkeypatch.setattr(Storage, "delete", watched)
    made.finish(section={}, parents={}, metrics={}, digest="d")
    assert gone == [("/work", True, True)] and made.storage.names(made.uri) == [
        "artifact.json",
        "recipe.json",
        "started.json",
    ]
    made.remove()
    assert gone[1:] == [("/artifact.json", True, False), ("/work", False, False), ("", False, False)]
    assert made.storage.names(made.uri) == []


def test_the_fingerprint_covers_section_and_parents_in_any_order():
    a = fingerprint({"x": 1, "y": 2}, {"p": "1:2"})
    assert a == fingerprint({"y": 2, "x": 1}, {"p": "1:2"})
    assert a != fingerprint({"x": 1, "y": 3}, {"p": "1:2"})
    assert a != fingerprint({"x": 1, "y": 2}, {"p": "1:3"})
