"""What a node keeps of images in place of the stored bytes: the same pixels in every epoch, annotations alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from mapsto.config.training import CacheConfig, TrainConfig
from mapsto.core import codecs
from mapsto.core.errors import UserError
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data import feed as feeds
from mapsto.data import shard_cache
from mapsto.data.feed import Feed
from mapsto.data.kept import Kept, kept
from mapsto.data.plan import Run
from mapsto.data.transforms import Compose, Decode, Keep

SIDE, SMALL = 96, 40


class Plain(Task):
    def streams(self, split: Any) -> Any:
        return {"main": Stream("train", split, Compose(Decode(), Keep("image", "label")), ("image", "label"))}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MAPSTO_CACHE", str(tmp_path / "cache"))
    shard_cache._folder.cache_clear()
    monkeypatch.setattr(feeds, "_groups", feeds.Groups())
    yield tmp_path / "cache"
    shard_cache._folder.cache_clear()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Any:
    return write_dataset(tmp_path_factory.mktemp("kept"), {"train": 40, "val": 10}, size=SIDE, seed=9)


def pictures(dataset: Any, how: Kept | None, epoch: int = 0, split: str = "train") -> dict[int, np.ndarray]:
    feed = Feed.of(Plain(TaskConfig(kind="plain"), {}), {"train": dataset}, ("train", "val"), how)
    run = Run.of(feed.streams["train"], feed.streams["val"], TrainConfig(batch_size=16, epochs=2), 1)
    feed = feed.follow(run)
    found = [feed.batch(g) for g in range(len(run)) if (run.item(g).split, run.item(g).epoch) == (split, epoch)]
    return {int(i): p for batch in found for i, p in zip(batch["row_id"], batch["image"], strict=True) if i >= 0}


def test_what_is_kept_is_the_stored_image_shrunk_once(dataset: Any) -> None:
    stored = {row["row_id"]: row["image"] for row in dataset.read("train", ["image"])}
    fitted = {i: codecs.fit(codecs.decode(data), SMALL) for i, data in stored.items()}
    expected = {
        Kept(SMALL, None): fitted,
        Kept(SMALL, 85): {i: codecs.decode(codecs.encode(p, "jpeg", 85)) for i, p in fitted.items()},
        Kept(None, None): {i: codecs.decode(data) for i, data in stored.items()},
        Kept(SIDE, 85): {i: codecs.decode(data) for i, data in stored.items()},  # no larger: the bytes as they are
    }
    for how, images in expected.items():
        for epoch in range(2):
            found = pictures(dataset, how, epoch)
            assert found.keys() == images.keys()
            for i in images:
                np.testing.assert_array_equal(found[i], images[i], err_msg=f"{how}, row {i}")


def test_evaluation_reads_what_is_stored(dataset: Any) -> None:
    whole, small = (pictures(dataset, how, split="val") for how in (None, Kept(SMALL, None)))
    assert len(whole) == 10 and all((whole[i] == small[i]).all() for i in whole)


def test_a_later_epoch_and_another_process_decode_nothing(
    dataset: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, columns, how = dataset.split("train"), ("image", "row_id"), Kept(SMALL, None)
    first = shard_cache.cached_group(index, 0, columns, how)[0]
    monkeypatch.setattr(codecs, "decode", lambda *_: pytest.fail("decoded again"))
    assert shard_cache.cached_group(index, 0, columns, how)[0].equals(first)
    monkeypatch.undo()
    shard_cache.cached_group(index, 0, columns)
    shard_cache.cached_group(index, 0, columns, Kept(SMALL, 90))
    assert len(list(cache.glob("*.arrow"))) == 3  # one does not stand for another


def test_boxes_masks_and_keypoints_follow_and_other_columns_stay() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 5, (60, 80), np.uint8)
    table = pa.table(
        {
            "image": pa.array([codecs.encode(rng.integers(0, 256, (60, 80, 3), np.uint8), "png")], pa.binary()),
            "row_id": pa.array([7], pa.int64()),
            "mask": pa.array([codecs.encode(mask, "png")], pa.binary()),
            "boxes": pa.array([[[10.0, 20.0, 40.0, 60.0]]], pa.list_(pa.list_(pa.float32()))),
            "keypoints": pa.array([[[8.0, 6.0, 2.0]]], pa.list_(pa.list_(pa.float32()))),
            "box_labels": pa.array([[3]], pa.list_(pa.int64())),
        }
    )
    for quality in (None, 90):
        (row,) = kept(table, Kept(40, quality)).to_pylist()
        assert row["boxes"] == [[5.0, 10.0, 20.0, 30.0]] and row["keypoints"] == [[4.0, 3.0, 2.0]]
        assert row["box_labels"] == [3] and row["row_id"] == 7
        assert codecs.decode_mask(row["mask"]).shape == (30, 40)
        size = (row["height"], row["width"]) if quality is None else codecs.decode(row["image"]).shape[:2]
        assert size == (30, 40)


def test_an_image_that_cannot_be_decoded_is_named() -> None:
    table = pa.table({"image": pa.array([b"no image"], pa.binary()), "row_id": [12]})
    with pytest.raises(UserError, match=r"^row 12: not an image that can be read"):
        kept(table, Kept(40, 90))


def test_packed_needs_a_size() -> None:
    with pytest.raises(ValidationError, match="packed needs longest_side"):
        CacheConfig(kind="packed", longest_side=None)
