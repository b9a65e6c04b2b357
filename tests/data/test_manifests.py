"""Manifests of other hands: Parquet columns of every type, images as a path in Hugging Face's struct, long cells, declared classes."""

from __future__ import annotations

import csv
import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.chunks import cut
from mapsto.data.reading import fetch
from mapsto.data.sources import Told, listing

from .layouts import STORE, ingested, picture, put

WHEN = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


def test_parquet_columns_of_every_type_become_words_and_numbers(tmp_path):
    columns = {
        "image": pa.array([picture()]),
        "consent": pa.array([WHEN], pa.timestamp("us", "UTC")),
        "license": pa.array([WHEN.date()], pa.date32()),
        "value": pa.array([decimal.Decimal("2.50")], pa.decimal128(9, 2)),
        "identity": pa.array(["Ann Ö".encode()], pa.binary()),
        "caption": pa.array([datetime.timedelta(seconds=3)], pa.duration("s")),
        "boxes": pa.array([[[decimal.Decimal(n) for n in (1, 2, 3, 4)]]], pa.list_(pa.list_(pa.decimal128(5, 1)))),
        "box_labels": pa.array([[b"cat"]], pa.list_(pa.binary())),
        "label": pa.array([decimal.Decimal(3)], pa.decimal128(3, 0)),
    }
    file = tmp_path / "m.parquet"
    pq.write_table(pa.table(columns), file)
    rows, reasons, _, classes = ingested(file, tmp_path, "manifest")
    (row,) = rows.values()
    assert not reasons and classes == ("3", "cat")
    assert {name: row[name] for name in ("consent", "license", "value", "identity", "caption", "boxes")} == {
        "consent": "2024-05-06T07:08:09+00:00", "license": "2024-05-06", "value": 2.5, "identity": "Ann Ö",
        "caption": "0:00:03", "boxes": [[1, 2, 3, 4]],
    }  # fmt: skip
    pq.write_table(pa.table({"image": [picture()], "identity": [b"\xff\x00"]}), file)
    with pytest.raises(UserError, match=r"m\.parquet: row 0 of row group 0: identity: bytes that are no text"):
        list(listing("manifest", str(file), STORE, ""))


@pytest.mark.parametrize(
    ("name", "text"), [("m.csv", "bytes,label\nAAAA,cat\n"), ("m.jsonl", '{"bytes": "AAAA", "label": "cat"}\n')]
)
def test_bytes_in_a_manifest_of_text_are_refused_in_one_line(tmp_path, name, text):
    with pytest.raises(UserError, match="a column bytes is read in Parquet alone; name the image's file"):
        list(listing("manifest", str(put(tmp_path / name, text)), STORE, ""))


def test_hugging_face_images_may_be_paths(tmp_path):
    put(tmp_path / "pictures/x.jpg", picture(3))
    images = [{"bytes": None, "path": p} for p in ("pictures/x.jpg", "gone.jpg", None)]
    images.append({"bytes": picture(4), "path": "pictures/x.jpg"})
    file = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image": images}), file)
    read = [data for _, data in fetch(list(listing("manifest", str(file), STORE, "")), Storage(retries=0))]
    assert read == [picture(3), "not found", "the row holds no image", picture(4)]
    pq.write_table(pa.table({"image": pa.array([{"bytes": None}], pa.struct([("bytes", pa.binary())]))}), file)
    assert [d for _, d in fetch(list(listing("manifest", str(file), STORE, "")), STORE)] == ["the row holds no image"]


def test_a_cell_of_a_csv_file_may_be_long(tmp_path):
    segment = json.dumps([[0.123456789] * 20_000])
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "segments"], ["a.jpg", json.dumps([segment])]])
    (reference,) = listing("manifest", str(tmp_path / "m.csv"), STORE, "")
    assert reference.columns["segments"] == [segment] and len(segment) > 131_072


def test_the_classes_that_features_name_are_the_data_sets_in_their_order(tmp_path):
    features = {"label": {"names": ["zebra", "none", "ant"], "_type": "ClassLabel"}}
    table = pa.table({"image": [picture(), picture(1)], "label": [2, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "m.parquet")
    told = Told()
    references = listing("manifest", str(tmp_path / "m.parquet"), STORE, "", told=told)
    listed = cut(references, STORE, str(tmp_path / "work"), {}, 0, None, declared=told.classes)
    assert listed.classes == ("zebra", "none", "ant")
