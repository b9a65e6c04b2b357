"""Purge: what a killed process left half-written is no hiding place."""

from pathlib import Path

import pytest

from mapsto.core.errors import UserError
from mapsto.core.storage import Storage

from .test_purge import PICTURES, erased, everything, made_world, no_cluster, row_id  # noqa: F401  the fixtures


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
