"""Data sets read back, and microbatches made from them in this process."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mapsto.config.schema import TrainConfig
from mapsto.core.errors import UserError
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data import feed as feeds
from mapsto.data import shard_cache
from mapsto.data.feed import Dice, Feed
from mapsto.data.order import generator
from mapsto.data.plan import Draws, Run
from mapsto.data.transforms import Compose, Decode, Keep, PadCrop, RandomFlip


class Plain(Task):
    def streams(self, split):
        steps = (
            (Decode(), PadCrop(4), RandomFlip(), Keep("image", "label"))
            if split == "train"
            else (Decode(), Keep("image", "label"))
        )
        return {"main": Stream("train", split, Compose(*steps), ("image", "label"))}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MAPSTO_CACHE", str(folder))
    shard_cache._folder.cache_clear()
    yield folder
    shard_cache._folder.cache_clear()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 150, "val": 21, "test": 33})


def feed_of(dataset, **config):
    feed = Feed.of(Plain(TaskConfig(kind="plain"), {"train": dataset.info()}), {"train": dataset})
    run = Run.of(feed.streams["train"], feed.streams["val"], TrainConfig(**{"batch_size": 40, "epochs": 2} | config), 2)
    return feed.follow(run), run


def test_a_dataset_says_what_it_holds_and_reads_rows(dataset):
    info = dataset.info()
    assert info.rows == {"train": 150, "val": 21, "test": 33} and info.classes == ("a", "b", "c")
    index = pickle.loads(pickle.dumps(dataset.split("train")))
    assert index.rows == 150 and index.groups.sum() == 150 and index.starts[-1] == 150
    assert [r["row_id"] for r in dataset.read("test", ["label"], limit=20)] == list(range(171, 191))
    drawn = dataset.read("train", ["label"], limit=70, seed=3)
    assert len({r["row_id"] for r in drawn}) == 70 and drawn == dataset.read("train", ["label"], limit=70, seed=3)
    assert all(r["label"] == r["row_id"] % 3 for r in drawn)
    assert len(dataset.read("train", seed=1)) == len({r["row_id"] for r in dataset.read("train", seed=1)}) == 150
    with pytest.raises(UserError, match="no column 'lable', did you mean 'label'"):
        dataset.read("train", ["lable"])
    with pytest.raises(UserError, match="no split 'tset', did you mean 'test'"):
        dataset.split("tset")


def test_microbatches_hold_the_plans_rows_and_the_same_pixels_everywhere(dataset):
    feed, run = feed_of(dataset)
    again = pickle.loads(pickle.dumps(feed))
    for g in range(0, len(run), 3):
        batch, other = feed.batch(g), again.batch(g)
        draws = run.draws(g)["main"]
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (len(draws), 32, 32, 3)
        np.testing.assert_array_equal(batch["valid"], draws.valid)
        np.testing.assert_array_equal(batch["label"][draws.valid], batch["row_id"][draws.valid] % 3)
        assert (batch["row_id"][~draws.valid] == -1).all()
        assert set(batch) == set(other) == {"image", "label", "row_id", "valid"}
        assert all((batch[name] == other[name]).all() for name in batch)


def test_a_row_is_augmented_alike_in_every_world_and_otherwise_in_every_epoch(dataset):
    def pictures(accumulate, epoch):
        feed, run = feed_of(dataset, accumulate=accumulate)
        out = {}
        for g in range(run.start_of(epoch), run.start_of(epoch, run.steps_per_epoch)):
            batch = feed.batch(g)
            out |= {int(i): p for i, p in zip(batch["row_id"], batch["image"], strict=True) if i >= 0}
        return out

    one, other, later = pictures(1, 0), pictures(3, 0), pictures(1, 1)
    assert len(one) == 150 and all((one[i] == other[i]).all() for i in one)
    assert np.mean([(one[i] == later[i]).all() for i in one]) < 0.2


def test_dice_are_the_counters_generators():
    dice = Dice(np.array([5, 9], np.uint64))
    for epoch, row, draw in ((0, 0, 0), (3, 17, 0), (3, 17, 2), (1, 2**40, 1)):
        expected = generator(5, 9, epoch, row, 1000 + draw)
        rng = dice.at(epoch, row, draw)
        np.testing.assert_array_equal([rng.random() for _ in range(9)], expected.random(9))
        rng.integers(0, 9, dtype=np.uint32)  # leaves half a word behind, which the next draw must not see
    assert dice.at(0, 0, 0).random() == generator(5, 9, 0, 0, 1000).random()


def test_evaluation_reads_the_training_split_without_augmentation(dataset):
    feed = Feed.evaluating(Plain(TaskConfig(kind="plain"), {}), {"train": dataset}, "train").over("train", 64)
    batches = [feed.batch(g) for g in range(len(feed.plan))]
    ids = np.concatenate([b["row_id"][b["valid"]] for b in batches])
    assert ids.tolist() == list(range(150)) and {len(b["valid"]) for b in batches} == {64}
    first = Decode().apply({"image": dataset.read("train", ["image"], 1)[0]["image"]}, np.random.default_rng(0))[
        "image"
    ]
    np.testing.assert_array_equal(batches[0]["image"][0], first)


def test_whatever_a_transform_raises_names_the_row(dataset):
    class Fails:
        def __call__(self, samples, rng):
            raise ValueError("no such thing") if samples[0]["row_id"] == 7 else UserError("not this one")

    feed, _ = feed_of(dataset)
    stream, index = feed.streams["train"]["main"]
    failing = replace(feed, streams={"train": {"main": (replace(stream, transform=Fails()), index)}})
    number = next(g for g in range(9) if failing.plan.draws(g)["main"].rows[0] != 7)
    with pytest.raises(UserError, match=r"^train row \d+: not this one"):
        failing.batch(number)
    alone = Draws(np.array([7]), np.zeros(1, int), np.zeros(1, int), np.ones(1, bool), np.empty((1, 0), int))
    with pytest.raises(RuntimeError, match=r"^train row 7: ValueError: no such thing"):
        failing._collated("main", stream_of(failing), index, alone, None)


def stream_of(feed):
    return feed.streams["train"]["main"][0]


def test_several_streams_carry_their_names(dataset, tmp_path, write_dataset):
    style = write_dataset(tmp_path / "style", {"train": 20}, seed=1)

    class Two(Task):
        def streams(self, split):
            keep = Compose(Decode(), Keep("image"))
            return {
                "content": Stream("train", split, keep, ("image",)),
                "style": Stream("style", "train", keep, ("image",), ratio=0.5),
            }

    feed = Feed.of(Two(TaskConfig(kind="two"), {}), {"train": dataset, "style": style}, ("train",))
    run = Run.of(feed.streams["train"], None, TrainConfig(batch_size=16), 1)
    batch = feed.follow(run).batch(0)
    assert batch["content.image"].shape[0] == 16 and batch["style.image"].shape[0] == 8
    np.testing.assert_array_equal(batch["row_id"], batch["content.row_id"])
    assert batch["valid"].all() and len(batch["style.row_id"]) == 8


def test_what_a_data_set_lacks_is_named(dataset, tmp_path, write_dataset):
    class Masked(Task):
        def streams(self, split):
            return {"main": Stream("train", split, Compose(Decode()), ("image", "mask"))}

    with pytest.raises(UserError, match=r"data.train has no mask, which the task needs; it has image, row_id, label"):
        Feed.of(Masked(TaskConfig(kind="m"), {}), {"train": dataset})
    with pytest.raises(UserError, match=r"the task reads data.train, which the recipe does not have"):
        Feed.of(Plain(TaskConfig(kind="m"), {}), {"other": dataset})
    without = write_dataset(tmp_path / "no-val", {"train": 9}, seed=2)
    assert set(Feed.of(Plain(TaskConfig(kind="m"), {}), {"train": without}).streams) == {"train"}
    with pytest.raises(UserError, match="the val split has no images"):
        Feed.evaluating(Plain(TaskConfig(kind="m"), {}), {"train": without}, "val")


def test_the_cache_holds_its_limit_and_works_without_room(dataset, cache, monkeypatch):
    index = dataset.split("train")
    table = shard_cache.cached_group(index, 0, ("image", "row_id"))[0]
    assert len(list(cache.glob("*.arrow"))) == 1
    monkeypatch.setenv("MAPSTO_CACHE_GB", str(2.5 * table.nbytes / 2**30))
    for number in range(5):
        assert shard_cache.cached_group(index, number, ("image", "row_id"))[0].num_rows == index.groups[number]
    assert len(list(cache.glob("*.arrow"))) <= 2
    monkeypatch.setenv("MAPSTO_CACHE_GB", "0")
    assert shard_cache.cached_group(index, 7, ("row_id",))[0].num_rows == index.groups[7]
    assert not list(cache.glob("*.part"))


def test_the_cache_makes_room_on_a_disk_that_is_nearly_full(dataset, cache, monkeypatch):
    index = dataset.split("train")
    size = shard_cache.cached_group(index, 0, ("image", "row_id"))[0].nbytes
    monkeypatch.setattr(
        shard_cache.shutil, "disk_usage", lambda path: shard_cache.shutil._ntuple_diskusage(0, 0, free())
    )
    room = 2.5 * size

    def free() -> float:
        return shard_cache.FREE_BYTES + room - sum(path.stat().st_size for path in cache.glob("*.arrow"))

    for number in range(1, 6):
        assert shard_cache.cached_group(index, number, ("image", "row_id"))[1] == 0  # on the disk, not in memory
        assert 1 <= len(list(cache.glob("*.arrow"))) <= 3
    room = 0.0
    table, held = shard_cache.cached_group(index, 6, ("image", "row_id"))
    assert held == table.nbytes > 0 and not list(cache.glob("*.arrow"))


def test_the_least_used_entry_goes_first(dataset, cache, monkeypatch):
    index = dataset.split("train")
    names = {}
    for number in range(3):
        before = set(cache.glob("*.arrow"))
        size = shard_cache.cached_group(index, number, ("image", "row_id"))[0].nbytes
        (names[number],) = set(cache.glob("*.arrow")) - before
        os.utime(names[number], (1000 + number, 1000 + number))
    shard_cache.cached_group(index, 0, ("image", "row_id"))  # used again
    monkeypatch.setenv("MAPSTO_CACHE_GB", str(3.6 * size / 2**30))
    shard_cache.cached_group(index, 3, ("image", "row_id"))
    assert names[0].exists() and not names[1].exists()


def test_groups_without_room_on_the_disk_hold_little_memory(monkeypatch):
    monkeypatch.setattr(feeds, "HELD_BYTES", 250)
    groups, table = feeds.Groups(), pa.table({"x": [1, 2]})
    read = []

    def bring(key, held):
        groups.get(key, lambda: (read.append(key), (table, held))[1])

    for key in ("a", "b", "a", "c", "a", "b"):  # c is the third of 100 bytes: b, which was not used for longest, goes
        bring(key, 100)
    assert read == ["a", "b", "c", "b"]
    bring("huge", 1000)
    bring("huge", 1000)
    assert read[-1] == "huge" and read.count("huge") == 1
    for key in range(300):
        bring(key, 0)
    bring(299, 0)
    bring(0, 0)
    assert read.count(299) == 1 and read.count(0) == 2  # no more than OPEN_GROUPS of them


def test_partners_are_the_plans_rows_and_go_through_the_steps_before_the_join(dataset):
    class Halves:
        def apply(self, sample, rng):
            return sample | {"twice": 2 * sample["label"]}

    class Row:
        def join(self, samples, rng):
            return {"rows": np.array([s["row_id"] for s in samples]), "twice": np.array([s["twice"] for s in samples])}

    class Joined(Task):
        def streams(self, split):
            partners = 2 if split == "train" else 0
            return {"main": Stream("train", split, Compose(Halves(), Row()), ("label",), partners=partners)}

    feed = Feed.of(Joined(TaskConfig(kind="joined"), {}), {"train": dataset}, ("train",))
    first = {}
    for world in (1, 2, 3):
        run = Run.of(feed.streams["train"], None, TrainConfig(batch_size=30, epochs=2), world)
        seen = {}
        for g in range(len(run)):
            batch, draws = feed.follow(run).batch(g), run.draws(g)["main"]
            assert batch["rows"].shape == (len(draws), 3)
            assert (batch["rows"] == np.column_stack([draws.rows, draws.partners])).all()
            assert (batch["twice"] == 2 * (batch["rows"] % 3)).all()
            seen |= {(e, row[0]): tuple(row) for e, row in zip(draws.epochs, batch["rows"].tolist(), strict=True)}
        assert len(seen) == 300 and seen == (first or seen)
        first = seen
