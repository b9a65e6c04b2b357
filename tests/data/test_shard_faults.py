"""A shard that is cut short, damaged or another, and a node's copy of one: named, or fetched again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mapsto.config.schema import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data import feed, shard_cache
from mapsto.data.dataset import Dataset
from mapsto.data.feed import Feed
from mapsto.data.plan import Run
from mapsto.data.strata import strata
from mapsto.data.transforms import Compose, Decode, Keep
from tests.noise import in_bucket

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


def microbatches(dataset: Dataset) -> Iterator[list[int]]:
    """The ids of an epoch's rows, in stored order: each microbatch reads a row group of its own."""

    class Plain(Task):
        def streams(self, split: Any) -> Any:
            return {"main": Stream("train", split, Compose(Decode(), Keep("image")), ("image",), "sequential")}

    whole = Feed.of(Plain(TaskConfig(kind="plain"), {}), {"train": dataset}, ("train",))
    run = Run.of(whole.streams["train"], None, TrainConfig(epochs=1, batch_size=GROUP), 1)
    for g in range(len(run)):
        yield whole.follow(run).batch(g)["row_id"].tolist()


def whole_epoch(dataset: Dataset) -> list[int]:
    return [row for rows in microbatches(dataset) for row in rows]


def test_a_shard_that_is_cut_short_damaged_or_another_is_named(shard: tuple[Path, Dataset]) -> None:
    path, dataset = shard
    first, second = (Path(dataset.split("train").files[k].uri) for k in (0, 1))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())  # of as many rows in as large groups
    entry = dataset.manifest["splits"]["train"]["files"][0]
    with pytest.raises(
        UserError,
        match=f"^{first}: {second.stat().st_size} bytes where the data set's manifest has {entry['bytes']}: replaced",
    ):
        whole_epoch(dataset)
    size, entry["bytes"] = entry["bytes"], second.stat().st_size  # and, by chance, of as many bytes
    with pytest.raises(UserError, match=f"^{first}: holds row_id 96 to 111 where .* manifest has 0 to 95: replaced"):
        whole_epoch(dataset)
    first.write_bytes(held)
    entry["bytes"] = size
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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda good, other: None, "not found"),
        (lambda good, other: good[: len(good) // 2], "cut short or damaged"),
        (lambda good, other: b"", "cut short or damaged"),
        (lambda good, other: other, r"\d+ bytes where the data set's manifest has \d+: replaced"),
    ],
    ids=["deleted", "truncated", "emptied", "overwritten"],
)
@pytest.mark.parametrize("gigabytes", ["20", "0"], ids=["cache", "no-cache"])
def test_a_shard_lost_in_a_bucket_is_named_unless_the_node_has_it(
    s3: Any,
    shard: tuple[Path, Dataset],
    write_dataset: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gigabytes: str,
    change: Callable[[bytes, bytes], bytes | None],
    why: str,
) -> None:
    monkeypatch.setenv("MAPSTO_CACHE_GB", gigabytes)
    monkeypatch.setattr(feed, "_groups", feed.Groups())
    local = shard[1]
    remote = in_bucket(local, s3)
    path = local.manifest["splits"]["train"]["files"][2]["path"]
    uri, good = remote.artifact.path(path), Path(local.artifact.path(path)).read_bytes()
    others = write_dataset(tmp_path / "others", {"train": ROWS}, per_group=GROUP, per_file=96, seed=5)
    other = Path(others.artifact.path(path)).read_bytes()  # the same ids in the same row groups, other images

    def disturb() -> None:
        bad = change(good, other)
        s3.storage.delete(uri) if bad is None else s3.storage.write(uri, bad)

    coming = microbatches(remote)
    seen = [row for _ in range(14) for row in next(coming)]  # two row groups of the third shard
    disturb()
    with pytest.raises(UserError, match=f"^{uri}: {why}"):
        seen += [row for rows in coming for row in rows]
    assert seen == list(range(14 * GROUP))
    s3.storage.write(uri, good)
    assert whole_epoch(remote) == list(range(ROWS))
    disturb()
    monkeypatch.setattr(feed, "_groups", feed.Groups())  # another process of the node
    if gigabytes != "0":
        assert whole_epoch(remote) == list(range(ROWS))
    else:
        with pytest.raises(UserError, match=f"^{uri}: {why}"):
            whole_epoch(remote)


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
