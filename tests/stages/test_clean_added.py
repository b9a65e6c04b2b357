"""Corrections bring classes and columns that the data set lacked: ids stay, every shard has the columns. No Ray."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mapsto.config.curation import CleanConfig
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode_mask, encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.export import export
from mapsto.stages import clean_corrections, clean_facts
from mapsto.stages.review import corrections, review
from mapsto.stages.versions import verify

from .test_clean import no_cluster  # noqa: F401  the fixture
from .test_clean_corrections import OFF, check_totals, cleaned, lines, rows_of
from .test_export import rich  # noqa: F401  the fixture
from .test_ingest import here, images, run  # noqa: F401  the fixture
from .test_review import answered

POLYGON = "[[2.0, 3.0, 12.0, 3.0, 12.0, 11.0]]"


@pytest.fixture
def bare(here, tmp_path):  # noqa: F811
    """Images without annotations, in three splits and as many shards."""
    return run(images(tmp_path / "images", {"train": 6, "val": 3, "test": 3}), tmp_path / "data")[0]


def test_boxes_masks_and_labels_come_to_a_data_set_without_any(bare, tmp_path, capsys):
    assert not {"label", "boxes", "mask"} & set(bare.manifest["columns"]) and bare.manifest["classes"] == []
    old = rows_of(bare)
    one, two = min(old), max(old)
    mask = base64.b64encode(encode(np.full((16, 20), 3, np.uint8), "png")).decode()
    file = lines(
        tmp_path / "c.jsonl",
        {"row_id": one, "content_sha256": old[one]["content_sha256"], "label": "cat", "boxes": [[2, 3, 12, 11], [0, 0, 5, 5]],
         "box_labels": ["dog", "cat"], "origin": [None, None], "segments": [POLYGON, None]},
        {"row_id": two, "content_sha256": old[two]["content_sha256"], "mask_png": mask},
    )  # fmt: skip
    dataset, metrics = cleaned(bare, tmp_path / "clean" / "1", file, add=("dog", "cat"))
    assert metrics["corrected"] == 2 and metrics["shards_shared"] == 0
    assert dataset.manifest["classes"] == ["dog", "cat"] and verify(dataset) == []
    assert dataset.manifest["columns"][-5:] == ["box_labels", "boxes", "label", "segments", "mask"]
    schemas = {
        str(pq.read_schema(file.uri)) for split in dataset.manifest["splits"] for file in dataset.split(split).files
    }
    assert len(schemas) == 1
    new = rows_of(dataset)
    assert new[one] == old[one] | {
        "label": 1, "boxes": [[2, 3, 12, 11], [0, 0, 5, 5]], "box_labels": [0, 1], "segments": [POLYGON, "[]"], "mask": None,
    }  # fmt: skip
    assert (decode_mask(new[two]["mask"]) == 3).all()
    for row_id in old.keys() - {one, two}:
        empty = dict.fromkeys(("boxes", "box_labels", "segments", "mask"))
        assert new[row_id] == old[row_id] | empty | {"label": -1}
    counts = dataset.manifest["counts"], dataset.manifest["objects"], dataset.manifest["mask_pixels"]
    splits = {row_id: split for split in bare.manifest["splits"] for row_id in (r["row_id"] for r in bare.read(split))}
    assert counts[0][splits[one]] == {"cat": 1} and counts[1][splits[one]] == {"dog": 1, "cat": 1}
    assert counts[2][splits[two]] == {"3": 16 * 20} and all(set(each) == set(splits.values()) for each in counts)

    again, _ = cleaned(dataset, tmp_path / "clean" / "2", file)
    assert rows_of(again) == new and again.manifest["classes"] == ["dog", "cat"]
    export(dataset, str(tmp_path / "coco"), "coco", say=lambda line: None)
    list(review(dataset.artifact.uri, "label-studio", str(tmp_path / "again")))


def test_a_new_class_is_appended_and_untouched_shards_are_shared(rich, tmp_path):  # noqa: F811
    old, classes = rows_of(rich), rich.manifest["classes"]
    row_id = min(old)
    file = lines(
        tmp_path / "c.jsonl", {"row_id": row_id, "content_sha256": old[row_id]["content_sha256"], "label": "aa"}
    )
    with pytest.raises(UserError, match=r"class 'aa' is none of the data set's \(`clean.add_classes` may add it\)"):
        cleaned(rich, tmp_path / "clean" / "0", file, add=("bird",))
    dataset, metrics = cleaned(rich, tmp_path / "clean" / "1", file, add=("bird", "aa", "cat"))
    assert dataset.manifest["classes"] == [*classes, "bird", "aa"] and metrics["shards_shared"] > 0
    assert rows_of(dataset) == old | {row_id: old[row_id] | {"label": len(classes) + 1}}
    check_totals(dataset)
    with pytest.raises(ValidationError, match="give `corrections`, or leave them out"):
        cleaned(rich, tmp_path / "clean" / "2", add=("bird",))


def test_a_review_may_name_a_new_class(rich, tmp_path):  # noqa: F811
    def change(row_id, results):
        kept = [r for r in results if r["type"] != "choices"]
        return [*kept, {"type": "choices", "value": {"choices": ["bird"]}}] if row_id == 0 else results

    list(review(rich.artifact.uri, "label-studio", str(tmp_path / "review")))
    told = "\n".join(
        corrections(rich.artifact.uri, str(answered(tmp_path / "review", change)), str(tmp_path / "c.jsonl"))
    )
    assert "new class 'bird' in 1 rows (`clean.add_classes` lets a cleaning take it)" in told
    dataset, _ = cleaned(rich, tmp_path / "clean" / "1", tmp_path / "c.jsonl", add=("bird",))
    assert dataset.manifest["classes"][rows_of(dataset)[0]["label"]] == "bird"


def test_what_was_added_is_said():
    made = clean_corrections.Corrected(None, {}, 0, ("bird",), {"boxes": 3})  # ty: ignore[invalid-argument-type]
    assert list(made.told(["a", "b"])) == [
        "new class 'bird' (id 2)",
        "new column boxes: 3 rows have it, the others are as not annotated",
    ]


@pytest.mark.parametrize("names", [["a", "a"], [""], [" a"]])
def test_names_of_new_classes_are_names(names):
    with pytest.raises(ValidationError, match="each is a name, once"):
        CleanConfig(add_classes=names)


def test_a_file_that_changes_under_a_cleaning_is_refused(bare, tmp_path, monkeypatch):
    row = rows_of(bare)[0]
    file = lines(tmp_path / "c.jsonl", {"row_id": 0, "content_sha256": row["content_sha256"], "label": "a"})
    read, seen = Storage.read, []

    def changing(self, uri):
        if Path(uri) == file:
            seen.append(uri)
            return read(self, uri) + b"\n" * (len(seen) - 1)
        return read(self, uri)

    monkeypatch.setattr(Storage, "read", changing)
    with pytest.raises(UserError, match=r"c.jsonl: has changed since this cleaning began; run it again$"):
        cleaned(bare, tmp_path / "clean" / "1", file, add=("a",), rules=OFF)
    assert len(seen) == 2 and json.loads(file.read_text())


def test_rows_of_one_label_have_no_place_for_classes_until_a_correction_brings_boxes(here, tmp_path):  # noqa: F811
    dataset = run(images(tmp_path / "images", {f"c{k:02d}": 1 for k in range(20)}), tmp_path / "data", splits={})[0]
    work = Artifact(str(tmp_path / "facts"), Storage())
    facts, _ = clean_facts.gather(work, dataset, tmp_path, False, lambda line: None)
    assert len(dataset.manifest["classes"]) == 20 and facts.present.shape == (20, 1) and not facts.present.any()
    row_id, sha256 = int(facts.row_id[7]), rows_of(dataset)[int(facts.row_id[7])]["content_sha256"]

    def present(**change) -> np.ndarray:
        file = lines(tmp_path / "c.jsonl", {"row_id": row_id, "content_sha256": sha256, **change})
        given = clean_corrections.named([str(file)], Storage())
        return clean_corrections.corrected(facts, given, Storage(), dataset.manifest).facts.present

    assert present(label="c03").shape == (20, 1)
    drawn = present(boxes=[[1, 2, 9, 9]], box_labels=["c17"], origin=[None])
    assert np.argwhere(np.unpackbits(drawn, axis=1)).tolist() == [[7, 17]]
