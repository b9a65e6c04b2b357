"""A shard that is cut short, damaged or another, and a node's copy of one: named, or fetched again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapsto.config.schema import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data import shard_cache
from mapsto.data.dataset import Dataset
from mapsto.data.feed import Feed
from mapsto.data.plan import Run
from mapsto.data.strata import strata
from mapsto.data.transforms import Compose, Decode, Keep

GROUP, ROWS = 16, 330
"""Rows of a row group, and of the data set."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("faults"), {"train": ROWS}, per_group=GROUP, per_file=96)


@pytest.fixture
def shard(local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Dataset]]:
    """The last shard of a copy of the data set, the copy, and an empty cache."""
    monkeypatch.setenv("MAPSTO_CACHE", str(tmp_path / "cache"))
    shard_cache._folder.cache_clear()
    shutil.copytree(local.artifact.uri, tmp_path / "copy")
    dataset = Dataset.open(Artifact(str(tmp_path / "copy"), local.artifact.storage))
    yield Path(dataset.split("train").files[-1].uri), dataset
    shard_cache._folder.cache_clear()


def whole_epoch(dataset: Dataset) -> list[int]:
    class Plain(Task):
        def streams(self, split: Any) -> Any:
            return {"main": Stream("train", split, Compose(Decode(), Keep("image")), ("image",), "sequential")}

    feed = Feed.of(Plain(TaskConfig(kind="plain"), {}), {"train": dataset}, ("train",))
    run = Run.of(feed.streams["train"], None, TrainConfig(epochs=1, batch_size=GROUP), 1)
    return [int(row) for g in range(len(run)) for row in feed.follow(run).batch(g)["row_id"]]


def test_a_shard_that_is_cut_short_damaged_or_another_is_named(shard: tuple[Path, Dataset]) -> None:
    path, dataset = shard
    first, second = (Path(dataset.split("train").files[k].uri) for k in (0, 1))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())  # of as many rows in as large groups
    with pytest.raises(UserError, match=f"^{first}: holds row_id 96 to 111 where .* manifest has 0 to 95: replaced"):
        whole_epoch(dataset)
    first.write_bytes(held)
    good = path.read_bytes()
    half = len(good) // 2
    damaged = good[:half] + bytes(b ^ 255 for b in good[half : half + 50]) + good[half + 50 :]
    another = Path(dataset.split("train").files[0].uri).read_bytes()
    for bad, why in (
        (good[:half], "cut short or damaged"),
        (b"", "cut short or damaged"),
        (damaged, "CRC checksum verification failed"),
        (another, "96 rows where the data set's manifest has 42: replaced"),
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"^{path}: .*{why}"):
            whole_epoch(dataset)
    path.write_bytes(good)
    assert whole_epoch(dataset) == list(range(ROWS))


def test_a_cached_copy_that_was_cut_short_is_fetched_again(
    shard: tuple[Path, Dataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, dataset = shard
    index = dataset.split("train")
    shard_cache.cached_group(index, 2, ("image", "row_id"))
    (entry,) = (tmp_path / "cache").glob("*.arrow")
    os.truncate(entry, entry.stat().st_size // 2)
    assert shard_cache.cached_group(index, 2, ("image", "row_id"))[0].num_rows == GROUP
    assert f"{entry}: not readable" in caplog.text
    assert shard_cache.cached_group(index, 2, ("image", "row_id"))[0].column("row_id").to_pylist() == list(
        range(32, 48)
    )


def test_a_damaged_shard_is_named_by_the_column_that_weighs_its_rows(shard: tuple[Path, Dataset]) -> None:
    path, dataset = shard
    stream = Stream("train", "train", Compose(Decode()), ("image", "label"), "balanced", by="label")
    good = path.read_bytes()
    another = Path(dataset.split("train").files[0].uri).read_bytes()
    for bad, why in ((good[: len(good) // 2], "cut short or damaged"), (another, "96 rows where .* has 42: replaced")):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"^{path}: {why}"):
            strata(stream, dataset.split("train"))
