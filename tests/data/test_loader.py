"""The loader through Ray Data: order, resumption, whole evaluation passes, clear errors."""

import numpy as np
import pytest
import ray

from mapsto.config.schema import TrainConfig
from mapsto.core.errors import UserError
from mapsto.core.preprocess import Preprocess
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data.blocks import Deal, opened
from mapsto.data.feed import Feed
from mapsto.data.loader import evaluation_rows, worker_batches
from mapsto.data.plan import Run
from mapsto.data.transforms import Compose, Decode, Keep, RandomFlip


def plain_task(dataset, size=None):
    class Plain(Task):  # local, so that it travels to the workers by value
        @property
        def preprocess(self):  # from its size the loader knows what a microbatch takes
            return None if size is None else Preprocess(size)

        def streams(self, split):
            return {
                "main": Stream(
                    "train", split, Compose(Decode(), RandomFlip(), Keep("image", "label")), ("image", "label")
                )
            }

    return Plain(TaskConfig(kind="plain"), {"train": dataset.info()})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("loader"), {"train": 200, "val": 21, "test": 53})


def gather(feed, world, starts):
    """What every rank of a group gets from each of the starts: lists of (item, row ids, sum of pixels)."""

    @ray.remote(num_cpus=0)
    class Box:
        def __init__(self):
            self.values = {}

        def put(self, key, value):
            self.values[key] = value

        def get(self, key):
            return self.values.get(key)

    @ray.remote(num_cpus=0.25)
    def rank_of(rank, box, feed):
        import time

        def share(value):
            if rank == 0:
                ray.get(box.put.remote(start, [value]))  # in a list, so that the reference itself travels
            while (found := ray.get(box.get.remote(start))) is None:
                time.sleep(0.05)
            return found[0]

        got = []
        for start in starts:
            got.append([])
            for item, batch in worker_batches(feed, rank, world, start, share=share, worker_cpus=0.25):
                time.sleep(0.02 * rank)  # a slow rank must not change who gets what
                pixels, ids = int(batch["image"].sum()), batch["row_id"].tolist()
                as_it_lies = batch["label"].dtype == np.int64 and not batch["image"].flags.writeable  # no copy was made
                got[-1].append((item, ids, pixels, as_it_lies))
        return got

    box = Box.remote()
    return ray.get([rank_of.remote(rank, box, feed) for rank in range(world)])


def by_step(taken):
    """(split, epoch, step) → the ids of its rows, without padding, and the sum of its pixels."""
    found = {}
    for item, ids, pixels, _ in taken:
        rows, total = found.get((item.split, item.epoch, item.step), ([], 0))
        found[item.split, item.epoch, item.step] = sorted(rows + [i for i in ids if i >= 0]), total + pixels
    return {key: value if key[0] == "train" else value[0] for key, value in found.items()}  # padding has pixels, too


def test_workers_get_their_own_microbatches_in_order_and_a_resumed_run_the_rest(cluster, dataset):
    feed = Feed.of(plain_task(dataset), {"train": dataset})
    config = TrainConfig(epochs=3, batch_size=32, evaluate_every=2)
    run, alone = (Run.of(feed.streams["train"], feed.streams["val"], config, world) for world in (2, 1))
    feed = feed.follow(run)
    start = run.start_of(1, 3)
    both = gather(feed, 2, [0, start])
    ((rest_of_one,),) = gather(feed.follow(alone), 1, [alone.start_of(1, 3)])
    assert by_step(rest_of_one) == by_step(
        both[0][1] + both[1][1]
    )  # by one worker in place of two: the same rows and pixels
    for rank, (got, rest) in enumerate(both):
        expected = [(run.item(g), feed.batch(g)) for g in range(rank, len(run), 2)]
        assert got == [(i, b["row_id"].tolist(), int(b["image"].sum()), True) for i, b in expected]
        assert rest == got[start // 2 :]


def test_several_microbatches_of_a_worker_travel_together(cluster, dataset):
    feed = Feed.of(plain_task(dataset, 8), {"train": dataset})
    run = Run.of(feed.streams["train"], feed.streams["val"], TrainConfig(epochs=10, batch_size=8), 2)
    feed = feed.follow(run)
    start = run.start_of(4, 3)
    assert Deal.of(0, len(run), 2, 1).together == Deal.of(0, len(run), 2, 4 * 8 * 8 * 3).together == 16
    for rank, (got, rest) in enumerate(gather(feed, 2, [0, start])):
        expected = [(run.item(g), feed.batch(g)) for g in range(rank, len(run), 2)]
        assert got == [(i, b["row_id"].tolist(), int(b["image"].sum()), True) for i, b in expected]
        assert rest == got[start // 2 :]


@pytest.mark.parametrize(("batch_size", "size", "blocks"), [(16, None, 4), (1, 8, 20)])
def test_evaluation_rows_hold_every_row_once_in_order(cluster, dataset, batch_size, size, blocks):
    class Actor:
        def __call__(self, row):
            found = list(opened(row))
            ids = [b["row_id"][b["valid"]] for _, b in found]
            return {
                "g": [[g for g, _ in found]],
                "rows": [[len(b["valid"]) for _, b in found]],
                "ids": [",".join(map(str, np.concatenate(ids)))],
            }

    rows = evaluation_rows(Feed.evaluating(plain_task(dataset, size), {"train": dataset}, "test"), "test", batch_size)
    got = rows.map_batches(Actor, batch_size=1, batch_format="pyarrow", concurrency=1, num_cpus=0.5).take_all()
    assert len(got) == blocks and {n for row in got for n in row["rows"]} == {batch_size}
    assert [g for row in got for g in row["g"]] == list(range(-(-53 // batch_size)))
    assert [int(i) for row in got for i in row["ids"].split(",")] == list(range(221, 274))


def test_a_row_that_cannot_be_read_is_one_clear_error(cluster, dataset):
    class Broken(Task):
        def streams(self, split):
            return {"main": Stream("train", split, Compose(Decode(), Keep("mask")), ("image", "label"))}

    feed = Feed.of(Broken(TaskConfig(kind="broken"), {}), {"train": dataset}, ("train",))
    feed = feed.follow(Run.of(feed.streams["train"], None, TrainConfig(batch_size=32), 1))
    with pytest.raises(UserError, match=r"^train row \d+: no mask, which the task needs$"):
        list(worker_batches(feed, 0, 1))
