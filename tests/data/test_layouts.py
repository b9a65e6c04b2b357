"""Layouts of folders and tables, drawn here: what is found, and what a broken one says."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from .layouts import ingested, picture, put


def test_a_single_image(tmp_path):
    put(tmp_path / "in/other.jpg", picture(1))
    rows, reasons, _, classes = ingested(put(tmp_path / "in/style.PNG", picture(0, "png")), tmp_path, "folder")
    assert list(rows) == ["style.PNG"] and rows["style.PNG"]["split"] == "train"
    assert not reasons and not classes


def test_faces_by_person_with_pairs(tmp_path):
    root = tmp_path / "lfw"
    for name in ("Ann_Example", "Bob_Example"):
        put(root / f"images/{name}/{name}_0001.jpg", picture())
    put(root / "images/stray.jpg", picture())
    put(root / "pairsDevTest.txt", "1\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "faces")
    assert classes == ("Ann_Example", "Bob_Example")
    assert rows["Bob_Example_0001.jpg"]["identity"] == "Bob_Example" and rows["Bob_Example_0001.jpg"]["label"] == 1
    assert list(reasons) == ["no person: it lies in no folder"]


def test_hugging_face_parquet(tmp_path):
    images = [{"bytes": picture(k), "path": f"{k}.jpg"} for k in range(3)]
    file = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}), file, row_group_size=2)
    rows, _, _, classes = ingested(file, tmp_path, "manifest")
    assert classes == ("0", "1") and len(rows) == 3
    assert {row["image"] for row in rows.values()} == {image["bytes"] for image in images}


def test_the_recipe_knows_every_layout():
    from typing import get_args

    from mapsto.config.schema import DataConfig
    from mapsto.data.sources import LAYOUTS

    assert set(get_args(DataConfig.model_fields["layout"].annotation)) == {"auto", *LAYOUTS}
