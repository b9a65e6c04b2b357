"""`data review`, `corrections` and `card` as the command line has them. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mapsto import cli
from mapsto.core.codecs import decode, decode_mask
from mapsto.core.errors import UserError
from mapsto.stages.card import card
from mapsto.stages.review import corrections, review
from mapsto.stages.versions import opened, verify

from .test_export import rich  # noqa: F401  the fixture
from .test_ingest import here  # noqa: F401  the fixture


def scored(dataset, folder: Path) -> tuple[Path, list[int]]:
    """A file of scores for every row, and the rows by score."""
    ids = [row["row_id"] for split in dataset.manifest["splits"] for row in dataset.read(split, ["row_id"])]
    scores = np.random.default_rng(0).permutation(len(ids)) / 10
    file = folder / "scores.jsonl"
    file.write_text("".join(json.dumps({"row_id": i, "score": s}) + "\n" for i, s in zip(ids, scores, strict=True)))
    return file, [i for _, i in sorted(zip(-scores, ids, strict=True))]


def answered(folder: Path, change) -> Path:
    """Label Studio's export after a person has taken all over, and changed some."""
    tasks = json.loads((folder / "tasks.json").read_text())
    for k, each in enumerate(tasks):
        results = each.pop("predictions")[0]["result"]
        each |= {"id": k, "annotations": [{"id": k, "result": change(each["data"]["row_id"], results)}]}
    file = folder.parent / "export.json"
    file.write_text(json.dumps(tasks))
    return file


def test_the_worst_rows_come_first_and_corrections_come_back(rich, tmp_path, capsys):  # noqa: F811
    scores, order = scored(rich, tmp_path)
    folder = tmp_path / "review"
    asked = ["--tool", "label-studio", "--scores", str(scores), "--limit", "5", "--output", str(folder)]
    assert cli.main(["data", "review", rich.artifact.uri, *asked]) == 0
    assert "5 rows for label-studio" in capsys.readouterr().out
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [each["data"]["row_id"] for each in tasks] == order[:5]
    rows = {row["row_id"]: row for split in rich.manifest["splits"] for row in rich.read(split)}
    for each in tasks:
        path = folder / "images" / Path(each["data"]["image"]).name
        assert path.read_bytes() == rows[each["data"]["row_id"]]["image"]
        assert Image.open(path).size == (each["data"]["width"], each["data"]["height"])
    assert len(list((folder / "images").iterdir())) == 5 and (folder / "export.json").exists()

    def change(row_id, results):
        if row_id == order[0]:
            results = [r for r in results if r["type"] != "choices"]
            results.append({"type": "choices", "value": {"choices": ["b" if rows[row_id]["label"] != 1 else "a"]}})
        return results

    out = tmp_path / "corrections.jsonl"
    assert (
        cli.main(["data", "corrections", rich.artifact.uri, str(answered(folder, change)), "--output", str(out)]) == 0
    )
    told = capsys.readouterr().out
    assert "1 corrections of 5 rows looked at" in told and "changed label  1 rows" in told
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line["row_id"], line["changed"]) == (order[0], ["label"]) and line["label"] in "ab"


def test_cvat_there_and_back(rich, tmp_path):  # noqa: F811
    folder = tmp_path / "review"
    list(review(rich.artifact.uri, "cvat", str(folder), mask_names=["sky", "road"]))
    assert len(list((folder / "images").iterdir())) == 12
    labels = [entry["name"] for entry in json.loads((folder / "labels.json").read_text())]
    assert labels == [*rich.manifest["classes"], "1 road", "2", "3", "4"]
    told = list(corrections(rich.artifact.uri, str(folder / "annotations.xml"), str(tmp_path / "c.jsonl")))
    assert told == [f"{tmp_path}/c.jsonl: 0 corrections of 12 rows looked at"]
    text = (folder / "annotations.xml").read_text().replace('label="dog"', 'label="cow"', 1)
    (tmp_path / "new.xml").write_text(text)
    told = list(corrections(rich.artifact.uri, str(tmp_path / "new.xml"), str(tmp_path / "new.jsonl")))
    assert any(
        line.startswith("new class 'cow' in 1 rows (`clean.add_classes` lets a cleaning take it)") for line in told
    )
    once = text[text.index("<image") : text.index("</image>") + 8]
    (tmp_path / "twice.xml").write_text(f"<annotations>{once}{once}</annotations>")
    with pytest.raises(UserError, match=r"twice.xml: row \d+ comes twice"):
        list(corrections(rich.artifact.uri, str(tmp_path / "twice.xml"), str(tmp_path / "none.jsonl")))


def test_rows_that_are_not_there_are_named(rich, tmp_path, capsys):  # noqa: F811
    scores = tmp_path / "s.jsonl"
    scores.write_text('{"row_id": 999, "score": 1}\n')
    asked = ["--tool", "cvat", "--scores", str(scores), "--output", str(tmp_path / "r")]
    assert cli.main(["data", "review", rich.artifact.uri, *asked]) == 2
    assert "s.jsonl: row 999 is not in" in capsys.readouterr().err and not (tmp_path / "r").exists()
    assert cli.main(["data", "review", rich.artifact.uri, *asked, "--limit", "0"]) == 2
    assert capsys.readouterr().err == "--limit 0: at least 1\n"
    list(review(rich.artifact.uri, "cvat", str(tmp_path / "r"), limit=2))
    with pytest.raises(UserError, match="not empty"):
        list(review(rich.artifact.uri, "cvat", str(tmp_path / "r")))
    gone = (tmp_path / "r" / "annotations.xml").read_text()
    name = gone[gone.index("000000-") :].split("-")[1]
    (tmp_path / "gone.xml").write_text(gone.replace(f"000000-{name}-", "000000-777-"))
    with pytest.raises(UserError, match=r"gone.xml: image '.*': row 777 is not in .* \(1 are not\)"):
        list(corrections(rich.artifact.uri, str(tmp_path / "gone.xml"), str(tmp_path / "c")))


def test_what_a_browser_does_not_show_goes_as_png(here, tmp_path):  # noqa: F811
    from .test_ingest import run

    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "x.tiff")
    dataset = run(tmp_path / "in", tmp_path / "out", splits={})[0]
    list(review(dataset.artifact.uri, "cvat", str(tmp_path / "r")))
    (file,) = (tmp_path / "r" / "images").iterdir()
    assert file.suffix == ".png" and (decode(file.read_bytes()) == pixels).all()


def test_the_card_has_the_counts_and_loads(rich, capsys):  # noqa: F811
    assert cli.main(["data", "card", rich.artifact.uri]) == 0
    text = capsys.readouterr().out
    _, front, body = text.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["task_categories"] == [
        "image-classification",
        "object-detection",
        "image-segmentation",
        "keypoint-detection",
        "image-to-text",
    ]
    assert told["size_categories"] == ["n<1K"] and told["license"] == "unknown"
    assert "12 images in 3 splits" in body and "| train | 6 | 1 |" in body and "| cat | 6 | 3 | 2 |" in body
    assert "12 rows in = 12 kept + 0 quarantined" in body and "The rows say nothing of licence or consent." in body
    ids = np.concatenate([decode_mask(row["mask"]).ravel() for row in rich.read("val")])
    assert (
        f"| 3 | {json.loads(rich.artifact.read('dataset.json'))['mask_pixels']['train']['3']:,} | {(ids == 3).sum():,} |"
        in body
    )
    scope: dict = {}
    exec(body.split("```python\n")[1].split("```")[0], scope)
    assert len(scope["rows"]) == 6 and scope["rows"][0]["image"]


def test_the_card_counts_licence_and_consent(rich, monkeypatch):  # noqa: F811
    import pyarrow as pa

    def group(index, number, columns):
        rows = index.groups[number]
        return pa.table({name: ["CC|BY"] * (rows - 1) + [None] for name in columns})

    monkeypatch.setattr("mapsto.stages.card.read_group", group)
    rich.manifest["columns"] += ["licence", "consent"]
    rich.manifest["classes"][0] = "a|b`\nc"
    rich.manifest["reasons"] = {"not an image": 3}
    text = "\n".join(card(rich))
    assert (
        "| licence | images |" in text
        and "| CC\\|BY | 9 |" in text
        and "| (none) | 3 |" in text
        and "license: CC|BY" in text
    )
    assert "| a\\|b' c |" in text and "| not an image | 3 |" in text


def test_a_changed_manifest_is_found(rich, capsys):  # noqa: F811
    assert verify(rich) == []
    manifest = Path(rich.artifact.uri, "dataset.json")
    text = manifest.read_text()
    manifest.write_text(text.replace('"cat"', '"cot"'))
    assert cli.main(["data", "verify", rich.artifact.uri]) == 2
    told = capsys.readouterr()
    assert "it names other classes or shards than were written" in told.err and "1 files are not" in told.out
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"dataset\.json is broken: .*make it anew with --force"):
        opened(rich.artifact.uri)


def test_what_a_cleaning_found_is_reviewed(rich, tmp_path, capsys):  # noqa: F811
    table = {
        "row_id": [4, 2, 7, 2],
        "rule": ["blurred", "missing_label", "missing_label", "blurred"],
        "score": [0.1, 1.0, 2.0, 0.3],
    }
    file = tmp_path / "findings.parquet"
    pq.write_table(pa.table(table), file)
    asked = [
        "data",
        "review",
        rich.artifact.uri,
        "--tool",
        "label-studio",
        "--scores",
        str(file),
        "--output",
        str(tmp_path / "r"),
    ]
    assert cli.main([*asked, "--rule", "missing_label"]) == 0
    assert [each["data"]["row_id"] for each in json.loads((tmp_path / "r" / "tasks.json").read_text())] == [7, 2]
    capsys.readouterr()
    for more, says in (
        ([], "several rules; name one with --rule: blurred, missing_label"),
        (["--rule", "dark"], "no findings of dark; it has blurred, missing_label"),
    ):
        assert cli.main([*asked, "--force", *more]) == 2
        assert says in capsys.readouterr().err
    pq.write_table(pa.table({"a": [1]}), file)
    assert cli.main([*asked, "--force"]) == 2
    assert "not a table of findings" in capsys.readouterr().err
