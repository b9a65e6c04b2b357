"""Clean takes what people have corrected: labels, boxes and masks of a review come into the new version. No Ray."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapsto.config.curation import CleanConfig
from mapsto.config.schema import DataConfig
from mapsto.core.codecs import decode, decode_mask, encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.curate.annotation.corrections import read_corrections
from mapsto.data.dataset import Dataset
from mapsto.data.export import export
from mapsto.data.pack import Packing, packed
from mapsto.stages.clean import Clean
from mapsto.stages.review import corrections, review
from mapsto.stages.versions import verify

from .ingested import run
from .test_clean import made, no_cluster  # noqa: F401  the fixture
from .test_export import rich  # noqa: F401  the fixture
from .test_ingest import here  # noqa: F401  the fixture
from .test_review import answered

OFF = {name: {"policy": "off"} for name in ("near_duplicate", "leakage", "blank", "boxes_outside", "exact_duplicate")}


def cleaned(
    before: Dataset,
    folder: Path,
    *files: Path,
    rules: Any = OFF,
    classes: int = 0,
    add: tuple[str, ...] = (),
    void: tuple[int, ...] = (),
) -> tuple[Dataset, Any]:
    names = [f"c{k}" for k in range(classes)]
    recipe = SimpleNamespace(
        name="trial",
        data={"train": DataConfig(source="x")},
        clean=CleanConfig.model_validate(
            {"rules": rules, "corrections": [str(file) for file in files], "add_classes": add}
        ),
        task=SimpleNamespace(kind="segment" if classes else "classify", classes=names, void=void),
        storage=SimpleNamespace(open=Storage),
    )
    dataset, done, _ = made(folder, Clean(), recipe, {"data": before.artifact})
    return dataset, done.metrics


def rows_of(dataset: Dataset) -> dict[int, dict[str, Any]]:
    return {row["row_id"]: row for split in dataset.manifest["splits"] for row in dataset.read(split)}


def check_totals(dataset: Dataset) -> None:
    """The manifest's counts, of labels, boxes and pixels, are those of its rows."""
    classes, manifest = dataset.manifest["classes"], dataset.manifest
    for split in manifest["splits"]:
        rows = list(dataset.read(split))
        assert manifest["counts"][split] == Counter(classes[row["label"]] for row in rows if row["label"] >= 0)
        assert manifest["objects"][split] == Counter(classes[k] for row in rows for k in row["box_labels"] or ())
        ids = np.concatenate([decode_mask(row["mask"]).ravel() for row in rows])
        assert manifest["mask_pixels"][split] == {str(k): int(n) for k, n in enumerate(np.bincount(ids)) if n}


def lines(file: Path, *entries: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def test_a_review_comes_into_the_new_version(rich, tmp_path):  # noqa: F811
    old = rows_of(rich)
    turned = min(row_id for row_id, row in old.items() if row["label"] == 0)

    def change(row_id, results):
        if row_id != turned:
            return results
        kept = [r for r in results if r["type"] != "choices"]
        return [*kept, {"type": "choices", "value": {"choices": ["b"]}}]

    folder = tmp_path / "review"
    list(review(rich.artifact.uri, "label-studio", str(folder)))
    list(corrections(rich.artifact.uri, str(answered(folder, change)), str(tmp_path / "one.jsonl")))
    boxed = next(
        row_id for row_id, row in old.items() if row_id != turned and len(row["boxes"]) == 2 and row["difficult"][0]
    )
    mask = np.full(decode_mask(old[boxed]["mask"]).shape, 3, np.uint8)
    drawn = {
        "row_id": boxed, "content_sha256": old[boxed]["content_sha256"],
        "boxes": [[1, 1, 9, 9], [2, 3, 12, 11]], "box_labels": ["dog", "dog"], "origin": [None, 0], "segments": [None, None],
        "mask_png": base64.b64encode(encode(mask, "png")).decode(),
    }  # fmt: skip
    second = lines(tmp_path / "two.jsonl", drawn)
    dataset, metrics = cleaned(rich, tmp_path / "clean" / "1", tmp_path / "one.jsonl", second)
    assert metrics["corrected"] == 2
    new, classes = rows_of(dataset), dataset.manifest["classes"]
    assert classes[new[turned]["label"]] == "b"
    seen = new[boxed]
    assert seen["boxes"] == drawn["boxes"] and [classes[k] for k in seen["box_labels"]] == ["dog", "dog"]
    assert seen["difficult"] == [False, True] and seen["keypoints"] == [[], [1, 2, 2, 0, 0, 0]]
    assert seen["area"] == [None, old[boxed]["area"][0]]
    assert seen["segments"] == ["[]", "[]"] and (decode_mask(seen["mask"]) == 3).all()
    for row_id, row in old.items():
        if row_id == boxed:
            row = row | {
                n: seen[n]
                for n in ("boxes", "box_labels", "crowd", "difficult", "area", "segments", "keypoints", "mask")
            }
        assert new[row_id] == row | ({"label": new[turned]["label"]} if row_id == turned else {})
    check_totals(dataset)
    assert verify(dataset) == []

    again = lines(
        tmp_path / "three.jsonl", {"row_id": turned, "content_sha256": old[turned]["content_sha256"], "label": None}
    )
    dataset, _ = cleaned(rich, tmp_path / "clean" / "2", tmp_path / "one.jsonl", second, again)
    assert rows_of(dataset)[turned]["label"] == -1 and rows_of(dataset)[boxed]["boxes"] == drawn["boxes"]
    check_totals(dataset)


def test_boxes_corrected_without_segments_are_exported_reviewed_and_packed(rich, tmp_path):  # noqa: F811
    old = rows_of(rich)
    some = [(row_id, row) for row_id, row in old.items() if len(row["boxes"]) == 2][:2]
    entries = [
        {
            "row_id": row_id, "content_sha256": row["content_sha256"], "boxes": [*row["boxes"][::-1], [1, 1, 9, 9]],
            "box_labels": ["cat", "dog", "dog"], "origin": [1, 0, None],
        }
        for row_id, row in some
    ]  # fmt: skip
    entries[0]["segments"] = [None, some[0][1]["segments"][0], None]
    dataset, _ = cleaned(rich, tmp_path / "clean" / "1", lines(tmp_path / "c.jsonl", *entries))
    new = rows_of(dataset)
    (first, (_, second)) = new[some[0][0]]["segments"], some[1]
    assert first == ["[]", some[0][1]["segments"][0], "[]"]
    assert new[some[1][0]]["segments"] == [*second["segments"][::-1], "[]"]  # each keeps its origin's
    export(dataset, str(tmp_path / "coco"), "coco", say=lambda line: None)
    annotations = [
        entry
        for file in (tmp_path / "coco/annotations").glob("instances_*.json")
        for entry in json.loads(file.read_text())["annotations"]
        if entry["image_id"] == some[0][0]
    ]
    assert [entry["segmentation"] for entry in annotations] == [json.loads(text) for text in first]
    list(review(dataset.artifact.uri, "label-studio", str(tmp_path / "again")))
    row = new[some[0][0]]
    small, _ = packed(row, decode(row["image"]), Packing(16, 90))
    assert [bool(json.loads(text)) for text in small["segments"]] == [False, True, False]


def test_rules_see_what_was_corrected(rich, tmp_path):  # noqa: F811
    old = rows_of(rich)
    (unlabelled,) = [row_id for row_id, row in old.items() if row["label"] < 0]
    entry = {"row_id": unlabelled, "content_sha256": old[unlabelled]["content_sha256"], "label": "c"}
    rules = OFF | {"missing_label": {"policy": "quarantine"}}
    assert cleaned(rich, tmp_path / "clean" / "1", rules=rules)[1]["quarantined"] == 1
    file = lines(tmp_path / "c.jsonl", entry)
    dataset, metrics = cleaned(rich, tmp_path / "clean" / "2", file, rules=rules)
    assert metrics["quarantined"] == 0 and len(rows_of(dataset)) == len(old)


def test_boxes_that_ingest_left_out_are_no_finding_once_a_person_has_drawn_them(here, tmp_path):  # noqa: F811
    (tmp_path / "a.png").write_bytes(encode(np.zeros((20, 30, 3), np.uint8), "png"))
    made_up = {"image": "a.png", "boxes": [[5, 5, 5, 9]], "box_labels": ["cell"]}
    before = run(lines(tmp_path / "m.jsonl", made_up), tmp_path / "data", splits={})[0]
    ((row_id, row),) = rows_of(before).items()
    drawn = {
        "row_id": row_id,
        "content_sha256": row["content_sha256"],
        "boxes": [[5, 5, 7, 9]],
        "box_labels": ["cell"],
        "origin": [None],
    }
    rules = OFF | {"boxes_without_area": {"policy": "quarantine"}, "dark": {"policy": "off"}}
    dataset, metrics = cleaned(before, tmp_path / "clean" / "1", lines(tmp_path / "c.jsonl", drawn), rules=rules)
    assert metrics["quarantined"] == 0 and rows_of(dataset)[row_id]["boxes"] == [[5, 5, 7, 9]]


def test_pixels_of_masks_that_leave_are_not_counted(rich, tmp_path):  # noqa: F811
    """Ids 0..4 are in all masks; one without 4 stays where the task has four classes."""
    old = rows_of(rich)
    shape = decode_mask(old[0]["mask"]).shape
    entries = [
        {"row_id": row_id, "content_sha256": row["content_sha256"],
         "mask_png": base64.b64encode(encode(np.full(shape, row_id % 4, np.uint8), "png")).decode()}
        for row_id, row in old.items() if row_id % 2 == 0
    ]  # fmt: skip
    rules = OFF | {"mask_ids": {"policy": "quarantine"}}
    dataset, metrics = cleaned(
        rich, tmp_path / "clean" / "1", lines(tmp_path / "c.jsonl", *entries), rules=rules, classes=4
    )
    assert metrics["quarantined"] == len(old) - len(entries)
    assert not any("4" in found for found in dataset.manifest["mask_pixels"].values())
    check_totals(dataset)


def test_void_ids_of_the_task_are_no_unknown_classes(rich, tmp_path):  # noqa: F811
    """Ids 0..4 are in all masks, as CamVid's 11 of 11 classes is; 5, in a corrected one, is neither a class nor void."""
    row = rows_of(rich)[0]
    shape = decode_mask(row["mask"]).shape
    masks = {k: base64.b64encode(encode(np.full(shape, k, np.uint8), "png")).decode() for k in (4, 5)}
    rules = OFF | {"mask_ids": {"policy": "report"}, "missing_label": {"policy": "off"}}

    def findings(number: int, void: tuple[int, ...], k: int) -> int:
        entry = {"row_id": 0, "content_sha256": row["content_sha256"], "mask_png": masks[k]}
        file = lines(tmp_path / f"{number}.jsonl", entry)
        return cleaned(rich, tmp_path / "clean" / str(number), file, rules=rules, classes=4, void=void)[1]["findings"]

    assert findings(1, (4,), 4) == 0 and findings(2, (4,), 5) == 1
    assert findings(3, (), 4) == 12


def test_corrections_that_do_not_fit_say_where(rich, tmp_path):  # noqa: F811
    row = rows_of(rich)[0]
    sound = {"row_id": 0, "content_sha256": row["content_sha256"], "label": "b"}
    small = base64.b64encode(encode(np.zeros((3, 5), np.uint8), "png")).decode()
    for change, says in (
        ({"row_id": 999}, r"c.jsonl: row 999 is not in the data set"),
        ({"content_sha256": "0" * 64}, r"row 0 is another image in the data set"),
        (
            {"label": "bb"},
            r"row 0: class 'bb' is none of the data set's \(`clean.add_classes` may add it\), did you mean 'b'",
        ),
        ({"mask_png": small}, r"mask_png is 5x3, the image \d+x\d+"),
        ({"mask_png": "?"}, r"row 0: mask_png: "),
    ):
        file = lines(tmp_path / "c.jsonl", sound | change)
        with pytest.raises(UserError, match=says):
            cleaned(rich, tmp_path / "clean" / "1", file)


def test_corrections_of_erased_rows_are_passed_over(rich, tmp_path):  # noqa: F811
    """Erasure leaves the manifest's own account; the corrections' file lies outside it."""
    row = rows_of(rich)[0]
    entries = [
        {"row_id": 0, "content_sha256": row["content_sha256"], "label": "b"},
        {"row_id": 999, "content_sha256": "0" * 64, "label": "a"},
    ]
    rich.artifact.write_json(rich.manifest | {"erased": [{"date": "2026-01-01", "rows": 1}]}, "dataset.json")
    dataset, metrics = cleaned(
        Dataset.open(rich.artifact), tmp_path / "clean" / "1", lines(tmp_path / "c.jsonl", *entries)
    )
    assert metrics["corrected"] == 1 and dataset.manifest["classes"][rows_of(dataset)[0]["label"]] == "b"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"row_id": "1"}, "row_id '1'"), ({"content_sha256": "ab"}, "content_sha256"), ({"label": ...}, "nothing corrected"),
        ({"boxes": [[1, 1, 1, 2]], "box_labels": ["a"], "origin": [None]}, "a box without area"),
        ({"boxes": [[1, 1, 2]], "box_labels": ["a"], "origin": [None]}, "reshape"),
        ({"boxes": [[1, 1, 2, 2]], "box_labels": [], "origin": [None]}, "0 box_labels for 1 boxes"),
        ({"boxes": [[1, 1, 2, 2]], "box_labels": ["a"]}, "origin"),
    ],
)  # fmt: skip
def test_broken_lines_are_named(change, says):
    entry = {"row_id": 0, "content_sha256": "0" * 64, "label": "b"} | change
    text = json.dumps({k: v for k, v in entry.items() if v is not ...})
    with pytest.raises(UserError, match=rf"^c.jsonl:2: not a correction as .*{says}"):
        read_corrections(f"\n{text}\n".encode(), "c.jsonl")


def test_a_row_that_comes_twice_is_named():
    line = json.dumps({"row_id": 3, "content_sha256": "0" * 64, "label": "b"})
    with pytest.raises(UserError, match=r"^c.jsonl:2: row 3 comes twice$"):
        read_corrections(f"{line}\n{line}\n".encode(), "c.jsonl")
