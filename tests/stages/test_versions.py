"""Data sets shown, verified and compared, as the command line has them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mapsto import cli
from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.stages.versions import diff, opened, show, verify

from .test_ingest import here, images, run  # noqa: F401  the fixture


@pytest.fixture
def dataset(here, tmp_path):  # noqa: F811
    return run(images(tmp_path / "a", {"cup": 6, "leaf": 6}), tmp_path / "out", splits={"val": 0.5})[0]


def shards(dataset) -> list[Path]:
    return sorted(Path(dataset.artifact.uri).rglob("shards/*.parquet"))


def test_show_has_the_counts(dataset):
    text = "\n".join(show(dataset))
    assert "12 kept, 0 quarantined of 12" in text and "classes  2: cup, leaf" in text and "val      6 rows" in text


def test_verify_names_what_changed_and_exits_2(dataset, capsys):
    assert verify(dataset) == [] and cli.main(["data", "verify", dataset.artifact.uri]) == 0
    first, second = shards(dataset)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(bytes(data))
    second.write_bytes(second.read_bytes()[:-5])
    wrong = sorted(verify(dataset))
    assert wrong[0].endswith("its content has changed (sha256)") and "were written" in wrong[1]
    second.unlink()
    capsys.readouterr()
    assert cli.main(["data", "verify", dataset.artifact.uri]) == 2
    told = capsys.readouterr()
    assert f"{second}: missing" in told.err and "2 files are not what was written" in told.out


def test_diff_counts_every_image_once(here, tmp_path, dataset, capsys):  # noqa: F811
    new = tmp_path / "b"
    images(new, {"cup": 6, "leaf": 6})
    for k in (0, 1):  # the drawn pictures are the same again: take one away, add one, and call one otherwise
        (new / "cup" / f"{k}.jpg").rename(new / "leaf" / f"was-cup-{k}.jpg")
    (new / "leaf" / "0.jpg").unlink()
    images(new, {"stone": 1}, seed=9)
    other = run(new, tmp_path / "out2", splits={"val": 0.5})[0]
    found = diff(dataset, other)
    assert (found.added, found.removed, found.changed, found.columns) == (1, 1, 2, {"label": 2})
    assert found.moved + found.same == 9
    assert cli.main(["data", "diff", dataset.artifact.uri, other.artifact.uri]) == 0
    assert "changed    2 (label 2)" in capsys.readouterr().out
    same = diff(dataset, dataset)
    assert same.same == 12 and same.added == same.removed == same.changed == same.moved == 0


def test_diff_tells_which_annotations_have_changed(here, tmp_path):  # noqa: F811
    rng, folder = np.random.default_rng(1), tmp_path / "images"
    folder.mkdir()
    for k in range(8):
        (folder / f"{k}.png").write_bytes(encode(rng.integers(0, 256, (16, 20, 3), np.uint8), "png"))
        (folder / f"mask-{k % 2}.png").write_bytes(encode(np.full((16, 20), k % 2, np.uint8), "png"))
    every = {"boxes": [[1, 2, 9, 12]], "box_labels": ["cat"], "caption": "one", "identity": "p", "mask": "mask-0.png", "labels": ["a"], "value": 1.0}  # fmt: skip
    first = [{"image": f"{k}.png", "split": "train"} | every for k in range(8)]
    changes = (
        {"boxes": [[1, 2, 9, 11]]}, {"mask": "mask-1.png"}, {"caption": "two", "value": 2.0}, {"labels": ["a", "b"]}, {"identity": "q"},
        {"box_labels": ["dog"]}, {"split": "val"}, {},
    )  # fmt: skip
    datasets = []
    for number, rows in enumerate((first, [row | change for row, change in zip(first, changes, strict=True)])):
        file = folder / f"{number}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        datasets.append(run(file, tmp_path / str(number), splits={"val": 0, "test": 0})[0])
    found = diff(*datasets)
    assert (found.changed, found.moved, found.same, found.added, found.removed) == (6, 1, 1, 0, 0)
    assert found.columns == dict.fromkeys(("labels", "value", "mask", "boxes", "box_labels", "caption", "identity"), 1)
    assert "changed    6 (labels 1, value 1, mask 1, boxes 1, box_labels 1, caption 1, identity 1)" in found.lines()


def test_diff_of_lists_of_labels_asks_no_order_of_classes(here, tmp_path):  # noqa: F811
    images(tmp_path / "images", {"x": 2})
    file = tmp_path / "m.jsonl"
    file.write_text("".join(json.dumps({"image": f"images/x/{k}.jpg", "labels": ["c", "a"]}) + "\n" for k in range(2)))
    dataset = run(file, tmp_path / "out", splits={"val": 0, "test": 0})[0]
    assert dataset.manifest["classes"] == ["a", "c"]
    turned = replace(dataset, manifest=dataset.manifest | {"classes": ["c", "a"]})  # ids 0 and 1 are the same two
    assert (diff(dataset, turned).same, diff(dataset, turned).changed) == (2, 0)
    other = replace(dataset, manifest=dataset.manifest | {"classes": ["a", "d"]})
    assert diff(dataset, other).columns == {"labels": 2}


def test_what_is_no_data_set_says_so(tmp_path):
    with pytest.raises(UserError, match="no finished artifact here"):
        opened(str(tmp_path))
