"""Purge: what a killed process left half-written is no hiding place, nor is a refused file's name."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.annotations import NO_AREA
from mapsto.data.dataset import Dataset
from mapsto.stages.purge_plan import Asked

from .old import no_count_of_boxes
from .test_purge import PICTURES, erased, everything, ingested, listed, made_world, no_cluster, row_id  # noqa: F401  the fixtures


def made_of(folder: Path) -> Dataset:
    return ingested(folder / "images", str(folder / "out/trial/ingest/0000"), listed(folder / "images"))


def test_what_a_killed_write_left_goes_too_and_the_proof_looks_for_it(made_world, tmp_path, monkeypatch):  # noqa: F811
    root, first = tmp_path / "out", made_world["first"]
    parts = [
        Path(made_world[name].artifact.path(*place)) / f".train-000000{suffix}.4711.part"
        for name, place, suffix in (("first", ("shards",), ".parquet"), ("cleaned", ("quarantine",), ".parquet"), ("other", (), ".html"))
    ]  # fmt: skip
    parts.append(root / "trial/evaluate/0009/.report.html.12.part")
    for part in parts:
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(PICTURES[0])
    elsewhere = root / "trial/train/0009/.model.safetensors.12.part"
    elsewhere.write_bytes(b"weights")
    remove = Storage.delete
    monkeypatch.setattr(Storage, "delete", lambda self, uri: uri.endswith(".part") or remove(self, uri))
    with pytest.raises(UserError, match=r"NOT complete.*shards/\.train-000000\.parquet\.4711\.part"):
        erased(first.artifact.uri, rows=(row_id(first, "0.png"),))
    monkeypatch.setattr(Storage, "delete", remove)
    erased(first.artifact.uri, rows=(row_id(first, "1.png"),))
    assert not [path for path, data in everything(root).items() if PICTURES[0] in data]
    assert not any(part.exists() for part in parts) and elsewhere.exists()


def test_without_a_count_for_each_row_the_number_of_boxes_left_out_stays(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        no_count_of_boxes(before)
        old = made_of(tmp_path / "old")
    assert "boxes_left_out" not in old.manifest["columns"]
    for dataset, left in ((old, 12), (made_of(tmp_path / "new"), 10)):
        assert dataset.manifest["dropped"] == {NO_AREA: 12}
        erased(dataset.artifact.uri, rows=(row_id(dataset, "1.png"), row_id(dataset, "2.png")))
        manifest = dataset.artifact.storage.read_json(dataset.artifact.path("dataset.json"))
        assert manifest["dropped"] == {NO_AREA: left} and manifest["rows_kept"] == 10


def test_a_persons_refused_files_go_with_their_rows(made_world, tmp_path):  # noqa: F811
    first = made_world["first"]
    [line] = [
        line
        for path in Path(first.artifact.path("quarantine")).glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert json.loads(line)["identity"] == "person-3" and "anna.png" in json.loads(line)["source"]
    told = erased(tmp_path / "out", identity="person-3")
    assert "1 quarantined" in told
    assert not [path for path, data in everything(tmp_path / "out").items() if b"anna.png" in data]
    assert first.artifact.storage.read_json(first.artifact.path("dataset.json"))["reasons"] == {}


@pytest.mark.parametrize(
    ("path", "theirs"),
    [
        ("images/Anna_K/1.jpg", True), ("images/x/Anna_K_0001.jpg", True), ("images/x/Anna_K2.jpg", False), ("Anna K.jpg", True), ("faces.tar!Anna_K/1.jpg", True),
        ("images/Anna_Karenina/1.jpg", False), ("images/Joanna_K/1.jpg", False), ("images/x/1.jpg", False), ("m.csv: row 1", False),
    ],
)  # fmt: skip
def test_a_refused_file_without_identity_is_told_by_its_path(path, theirs):
    def asked(columns=("identity",), source="/data/Anna_K", **more):
        version = SimpleNamespace(manifest={"columns": list(columns), "source": "/data/Anna_K"})
        return Asked(identity="Anna_K").names(json.dumps({"source": f"{source}/{path}", "reason": "x"} | more), version)

    assert asked() == theirs
    assert not asked(columns=("label",))  # a class may be called so
    assert asked(identity="Anna_K") and not asked(identity="7")


def test_a_number_as_identity_is_a_folder_alone():
    version = SimpleNamespace(manifest={"columns": ["identity"], "source": "/d"})
    for path, theirs in (("1/7.jpg", True), ("2/1.jpg", False), ("2/12.jpg", False), ("2/x1.jpg", False)):
        line = json.dumps({"source": f"/d/{path}", "reason": "x"})
        assert Asked(identity="1").names(line, version) == theirs  # type: ignore[arg-type]
