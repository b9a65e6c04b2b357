"""Garbage: only what no artifact refers to goes, never a shard that a version names, and nothing before it is asked."""

import json
import os
import time
from pathlib import Path

import pytest

from mapsto import cli
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage, join
from mapsto.data.dataset import MANIFEST
from mapsto.stages.gc import garbage, gc

STORE = Storage(retries=0)


def data_set(uri: str, own: list[str], others: list[str] = (), storage=STORE, finished=True) -> Artifact:
    """An artifact with these shards of its own, and a manifest that names them and `others`."""
    artifact = Artifact(uri, storage)
    artifact.begin({}, {}, {})
    for name in own:
        artifact.write(b"shard" * 10, "shards", name)
    files = [{"path": path, "rows": 1} for path in (*(f"shards/{name}" for name in own), *others)]
    artifact.write_json({"splits": {"train": {"rows": len(files), "files": files}}}, MANIFEST)
    if finished:
        artifact.finish(section={}, parents={}, metrics={}, digest="0")
    return artifact


def planted(root: str, storage=STORE) -> set[str]:
    """A root with garbage of every kind; what of it is garbage."""
    first = data_set(f"{root}/a/ingest/0", ["train-0.parquet", "train-1.parquet"], storage=storage)
    stray, lent = first.path("shards", "train-9.parquet"), first.path("shards", "train-8.parquet")
    storage.write(stray, b"x" * 7)
    storage.write(lent, b"y" * 7)  # no more in its own manifest, but in that of a version elsewhere
    data_set(f"{root}/b/clean/1", ["train-0e.parquet"], [lent, first.path("shards", "train-0.parquet")], storage)
    begun = Artifact(f"{root}/a/train/2", storage)
    begun.begin({}, {}, {"data.train": first})
    storage.write(begun.path("checkpoints", "step-1", "x.bin"), b"z" * 100)
    done = Artifact(f"{root}/a/train/3", storage)
    done.begin({}, {}, {"data.train": first})
    storage.write(done.path("ray", "run", "state.json"), b"{}")
    storage.write(done.path("model.safetensors"), b"weights")
    done.finish(section={}, parents={"data.train": first}, metrics={}, digest="1")
    storage.write(done.path("work", "fold-0", "x"), b"12345")  # killed right after it was finished
    data_set(f"{root}/a/ingest/4", ["train-0.parquet"], storage=storage, finished=False)
    data_set(f"{root}/b/clean/5", [], [f"{root}/a/ingest/4/shards/train-0.parquet"], storage)  # keeps 4 alive
    storage.write(f"{root}/a/report.html", b"a page")
    storage.write(f"{root}/a/notes/readme/x.txt", b"none of ours")
    return {stray, begun.uri, done.path("ray"), done.path("work")}


def files(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if path.is_file()}


def test_what_no_artifact_refers_to_goes_and_nothing_else(tmp_path, capsys):
    root = tmp_path / "out"
    wanted = planted(str(root))
    part = root / "a/train/3/.model.safetensors.4711.part"
    part.write_bytes(b"half")
    wanted.add(str(part))
    before = files(root)
    assert list(garbage(str(root), STORE)) == []  # all of it is younger than a day
    found = {each.uri: each for each in garbage(str(root), STORE, 0)}
    assert set(found) == wanted
    sizes = {uri: sum(p.stat().st_size for p in [Path(uri), *Path(uri).rglob("*")] if p.is_file()) for uri in wanted}
    assert {uri: each.bytes for uri, each in found.items()} == sizes
    assert cli.main(["gc", str(root), "--older-than", "0"]) == 0
    told = capsys.readouterr().out
    assert files(root) == before and "5 things" in told and "nothing was deleted; --yes deletes them" in told
    assert all(f"{uri}: " in told for uri in wanted) and f"{sum(sizes.values()):,} B" in told
    assert cli.main(["gc", str(root), "--older-than", "0", "--yes"]) == 0
    assert files(root) == {path for path in before if not any(path == u or path.startswith(u + "/") for u in wanted)}
    assert list(garbage(str(root), STORE, 0)) == []


def test_an_unfinished_data_set_does_not_keep_itself_alive(tmp_path):
    first = data_set(f"{tmp_path}/a/ingest/0", ["train-0.parquet"])
    begun = data_set(
        f"{tmp_path}/a/clean/1", ["train-0e.parquet"], [first.path("shards/train-0.parquet")], finished=False
    )
    used = data_set(f"{tmp_path}/a/ingest/2", ["train-0.parquet"], finished=False)
    data_set(f"{tmp_path}/a/clean/3", [], [used.path("shards/train-0.parquet")])
    assert [each.uri for each in garbage(str(tmp_path), STORE, 0)] == [begun.uri]
    list(gc(str(tmp_path), STORE, yes=True, older_than=0))
    assert not Path(begun.uri).exists() and list(garbage(str(tmp_path), STORE, 0)) == []
    assert Path(first.path("shards/train-0.parquet")).exists() and Path(used.path("shards/train-0.parquet")).exists()


@pytest.mark.parametrize("asked", ["{}", "file://{}", "{}/../link"])
def test_a_shard_is_the_same_by_another_spelling(tmp_path, asked):
    root = tmp_path / "out"
    wanted = planted(str(root))
    (tmp_path / "link").symlink_to(root)
    lent = root / "a/ingest/0/shards/train-7.parquet"
    lent.write_bytes(b"lent")
    (root / "a/ingest/0/shards/train-6.parquet").write_bytes(b"lent, too")
    data_set(f"{root}/b/clean/6", [], [f"file://{lent}", f"{tmp_path}/link/a/ingest/0/shards/train-6.parquet"])
    told = list(gc(asked.format(root), STORE, older_than=0))
    assert len(told) == len(wanted) + 1 and not any("train-7" in line or "train-6" in line for line in told)


def test_age_is_that_of_the_newest_file(tmp_path):
    root = tmp_path / "out"
    planted(str(root))
    long_ago = time.time() - 100 * 3600
    for path in root.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    begun = root / "a/train/2"
    assert str(begun) in {each.uri for each in garbage(str(root), STORE)}
    (begun / "checkpoints/step-2").mkdir()
    (begun / "checkpoints/step-2/x.bin").write_bytes(b"it goes on")
    assert str(begun) not in {each.uri for each in garbage(str(root), STORE)}
    assert len(list(garbage(str(root), STORE, 99))) == 3 and not list(garbage(str(root), STORE, 101))


@pytest.mark.parametrize(
    ("name", "text"), [("artifact.json", "{"), ("artifact.json", "[]"), (MANIFEST, "{}"), (MANIFEST, "\x00")]
)
def test_what_cannot_be_read_stops_it(tmp_path, capsys, name, text):
    root = tmp_path / "out"
    planted(str(root))
    (root / "b/clean/1" / name).write_text(text)
    before = files(root)
    assert cli.main(["gc", str(root), "--older-than", "0", "--yes"]) == 2
    assert f"b/clean/1/{name}: cannot be read" in capsys.readouterr().err and files(root) == before


def test_what_is_asked_wrongly(tmp_path):
    planted(str(tmp_path))
    for older in (-1, float("nan")):
        with pytest.raises(UserError, match="hours, 0 or more"):
            list(gc(str(tmp_path), STORE, older_than=older))
    with pytest.raises(UserError, match="gc looks at the whole `root`"):
        list(gc(f"{tmp_path}/a/train/3", STORE))
    for part in ("a", "a/train"):  # below a root, references from outside would not be seen
        with pytest.raises(UserError, match="gc looks at the whole `root`"):
            list(gc(f"{tmp_path}/{part}", STORE))
    with pytest.raises(UserError, match="no artifact here"):
        list(gc(f"{tmp_path}/nowhere", STORE))


def test_over_s3_with_an_upload_that_was_cut_off(s3):
    storage, root = s3.storage, f"{s3.uri('litter')}/mapsto"
    wanted = planted(root, storage)
    client = storage.client()
    for key in ("mapsto/a/train/3/big.bin", "elsewhere/other.bin"):
        upload = client.create_multipart_upload(Bucket="litter", Key=key)["UploadId"]
        client.upload_part(Bucket="litter", Key=key, UploadId=upload, PartNumber=1, Body=b"p" * 1234)
    assert list(garbage(root, storage)) == []
    found = {each.uri: each for each in garbage(root, storage, 0)}
    assert set(found) == wanted | {join(root, "a/train/3/big.bin")}
    assert found[join(root, "a/train/3/big.bin")].bytes == 1234
    assert f"{len(found)} things" in list(gc(root, storage, yes=True, older_than=0))[-1]
    assert list(garbage(root, storage, 0)) == []
    left = client.list_multipart_uploads(Bucket="litter").get("Uploads", ())
    assert [each["Key"] for each in left] == ["elsewhere/other.bin"]
    assert json.loads(storage.read(f"{root}/a/train/3/artifact.json"))["digest"] == "1"
    assert storage.exists(f"{root}/a/ingest/0/shards/train-8.parquet")
