"""Balanced, weighted and Poisson sampling, and parts of a split: how often a row is drawn, and by whom."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mapsto.config.schema import TrainConfig
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data.dataset import ShardFile, SplitIndex
from mapsto.data.feed import Feed
from mapsto.data.order import StreamPlan, order, poisson
from mapsto.data.plan import Pass, Run
from mapsto.data.strata import part, strata
from mapsto.data.transforms import Compose, Decode, Keep, PadCrop

groups = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def weighted(sizes, weights, **options) -> StreamPlan:
    """A stream whose rows have these weights, one each."""
    sizes = np.array(sizes, np.int64)
    rows, table = np.arange(len(weights)).astype(np.int32), np.array(weights, np.float64)
    return StreamPlan("main", sizes, int(sizes.sum()) * 100, "weighted", strata=rows, weights=table, **options)


def classes(sizes, labels, **options) -> StreamPlan:
    """A balanced stream over these labels."""
    sizes, labels = np.array(sizes, np.int64), np.asarray(labels, np.int16)
    counts = np.bincount(labels)
    table = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    return StreamPlan("main", sizes, int(sizes.sum()) * 100, "balanced", strata=labels, weights=table, **options)


def consumed(run: Run, world: int, start: int = 0) -> list[tuple[int, int, int, int]]:
    """(step, epoch, row, draw) of every valid draw, each worker's in turn, from a microbatch on."""
    found = []
    for rank in range(world):
        for g in range(start + rank, len(run), world):
            draws = run.draws(g)["main"]
            step, v = run.item(g).step, draws.valid
            found += [(step, *t) for t in zip(draws.epochs[v], draws.rows[v], draws.draw[v], strict=True)]
    return sorted((int(a), int(b), int(c), int(d)) for a, b, c, d in found)


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(0, 10**6), st.integers(100, 4000), st.data())
def test_a_weighted_epoch_draws_every_row_as_its_weight_says_rounded_up_or_down(sizes, seed, window, data):
    rows = sum(sizes)
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5, 7.0]), min_size=rows, max_size=rows))
    weights[data.draw(st.integers(0, rows - 1))] = 1.0
    plan = weighted(sizes, weights, window_bytes=window)
    assert plan.length == sum(w > 0 for w in weights)
    drawn, numbers = order(plan, seed, 0).draws(0, plan.length)
    assert len(drawn) == plan.length
    counts = np.bincount(drawn, minlength=rows)
    expected = np.array(weights) / sum(weights) * plan.length
    assert (np.abs(counts - expected) < 1 + 1e-9).all() and (counts[np.array(weights) == 0] == 0).all()
    assert sorted(zip(drawn.tolist(), numbers.tolist())) == [(r, k) for r in range(rows) for k in range(counts[r])]
    start, stop = sorted((data.draw(st.integers(0, plan.length)), data.draw(st.integers(0, plan.length))))
    part_rows, part_numbers = order(plan, seed, 0).draws(start, stop)
    assert part_rows.tolist() == drawn[start:stop].tolist() and part_numbers.tolist() == numbers[start:stop].tolist()


def test_expected_draws_are_the_weights_over_many_epochs():
    weights = np.random.default_rng(0).uniform(0.1, 4, 200)
    plan = weighted([20] * 10, weights, window_bytes=100 * 60)
    epochs = 400
    counts = sum(np.bincount(order(plan, 1, e).rows(0, plan.length), minlength=200) for e in range(epochs))
    mean = weights / weights.sum() * 200
    part_of = mean - np.floor(mean)
    sigma = np.sqrt(epochs * part_of * (1 - part_of)) + 1e-9  # of a number that is rounded at random
    z = (counts - epochs * mean) / sigma
    assert np.abs(z).max() < 4.5 and 0.8 < z.std() < 1.2


def test_pairs_of_rows_are_not_drawn_together_more_than_by_chance():
    """A fixed order would always take every third row with every third: the epoch's own order does not."""
    plan = weighted([60], [1.0] * 30 + [0.2] * 30)  # 60 draws over a weight of 36
    together = np.zeros((30, 30))
    for epoch in range(600):
        rare = np.bincount(order(plan, 0, epoch).rows(0, 60), minlength=60)[30:]
        together += np.outer(rare, rare)
    pairs = together[np.triu_indices(30, 1)] / 600
    assert pairs.mean() == pytest.approx((1 / 3) ** 2, rel=0.15) and pairs.max() < 0.2


def test_balanced_sampling_draws_every_class_alike():
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.7, 0.2, 0.08, 0.02])
    plan = classes([50] * 20, labels, window_bytes=100 * 50 * 6)
    counts = np.array([np.bincount(labels[order(plan, 3, e).rows(0, 1000)], minlength=4) for e in range(40)])
    assert (counts.sum(1) == 1000).all()
    np.testing.assert_allclose(counts.mean(0), 250, rtol=0.03)
    assert counts.std(0).max() < np.sqrt(1000 * 0.25 * 0.75)  # no more than independent draws would scatter
    firsts = [labels[order(plan, 3, e).rows(0, 100)] for e in range(40)]
    np.testing.assert_allclose(np.mean([np.bincount(f, minlength=4) for f in firsts], 0), 25, rtol=0.25)
    assert order(plan, 3, 0).rows(0, 1000).tolist() != order(plan, 3, 1).rows(0, 1000).tolist()


def beside(sizes, labels, together, **options) -> StreamPlan:
    """A stream of few identities at a time."""
    sizes, labels = np.array(sizes, np.int64), np.asarray(labels, np.int16)
    ones = np.ones(int(labels.max()) + 1)
    return StreamPlan("main", sizes, int(sizes.sum()) * 100, "identities", 0, 1.0, labels, ones, together, **options)


@settings(max_examples=40, deadline=None)
@given(groups, st.integers(1, 9), st.integers(2, 6), st.integers(0, 2**31), st.integers(300, 9000))
def test_rows_of_an_identity_follow_each_other_and_each_is_drawn_once(sizes, people, together, seed, window):
    labels = np.random.default_rng(seed).integers(0, people, sum(sizes))
    plan = beside(sizes, labels, together, window_bytes=window)
    found = order(plan, seed, 0)
    assert sorted(found.rows(0, plan.length)) == list(range(len(labels)))
    for low, high in zip(found.edges[:-1], found.edges[1:]):
        seen = labels[found.rows(int(low), int(high))]
        place, pieces = 0, []
        left = np.bincount(seen, minlength=people)
        while place < len(seen):  # pieces as long as they may be, but for each identity's last
            who = seen[place]
            size = next((k for k in range(together) if place + k >= len(seen) or seen[place + k] != who), together)
            pieces.append((who, size))
            place += size
        for who in range(people):
            own = [size for name, size in pieces if name == who]
            assert sum(own) == left[who] and len(own) <= -(-left[who] // together) + 1


def test_a_batch_of_few_identities_holds_several_of_each():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 8))
    plan, runs = beside([100] * 8, labels, 4), []
    for sampling in (plan, StreamPlan("main", plan.groups, plan.bytes, "shuffled")):
        run = Run((sampling,), batch_size=32, epochs=1)
        runs.append([len(np.unique(labels[run.draws(g)["main"].rows])) for g in range(len(run))])
    assert set(runs[0]) == {7, 8} or set(runs[0]) == {8}  # 8x4; two pieces of one identity may meet
    assert min(runs[1]) > 20
    other = [order(plan, 0, epoch).rows(0, 32).tolist() for epoch in range(2)]
    assert other[0] != other[1]


@settings(max_examples=20, deadline=None)
@given(
    groups,
    st.sampled_from(["balanced", "poisson", "identities"]),
    st.integers(3, 33),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**31),
    st.data(),
)
def test_any_number_of_workers_consumes_the_same_draws_once_and_resumes_exactly(
    sizes, sampling, batch, world, accumulate, seed, data
):
    labels = np.random.default_rng(seed).integers(0, 3, sum(sizes))
    plan = classes(sizes, labels, window_bytes=1500)
    if sampling == "poisson":
        plan = StreamPlan("main", plan.groups, plan.bytes, "poisson")
    if sampling == "identities":
        plan = beside(sizes, labels, 3, window_bytes=1500)
    alone = Run((plan,), seed=seed, batch_size=batch, epochs=3)
    many = Run((plan,), seed=seed, batch_size=batch, world=world, accumulate=accumulate, epochs=3)
    whole = consumed(alone, 1)
    assert consumed(many, world) == whole
    assert len({(e, r, d) for _, e, r, d in whole}) == len(whole)
    epoch = data.draw(st.integers(0, 2))
    step = data.draw(st.integers(0, many.steps_per_epoch - 1))
    again = pickle.loads(pickle.dumps(many))
    rest = consumed(again, world, again.start_of(epoch, step))
    assert rest == [draw for draw in whole if draw[0] >= epoch * many.steps_per_epoch + step]
    for g in range(len(many)):
        assert len(many.draws(g)["main"]) >= 1


def test_poisson_takes_every_row_by_itself_with_the_same_probability():
    plan = StreamPlan("main", np.array([40] * 5), 10**6, "poisson")
    steps, rate = 4000, 0.1
    taken = np.zeros((steps, 200), bool)
    for step in range(steps):
        rows = poisson(plan, 7, 0, step, rate)
        assert len(set(rows.tolist())) == len(rows)
        taken[step, rows] = True
    counts = taken.sum(0)
    chi = ((counts - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum()
    assert 0.001 < stats.chi2.sf(chi, 200) < 0.999
    sizes = taken.sum(1)  # binomial: the mean and the variance of independent coins
    assert sizes.mean() == pytest.approx(20, abs=0.3) and sizes.var() == pytest.approx(18, rel=0.1)
    pairs = (taken.T.astype(float) @ taken)[np.triu_indices(200, 1)]
    chi = ((pairs - steps * rate**2) ** 2 / (steps * rate**2 * (1 - rate**2))).mean()
    assert chi == pytest.approx(1, abs=0.1)


def test_poisson_steps_vary_and_may_be_empty():
    plan = StreamPlan("main", np.array([30]), 3000, "poisson", partners=2)
    run = Run((plan,), batch_size=2, world=3, epochs=20)
    assert run.steps_per_epoch == 15
    sizes = [sum(int(run.draws(g)["main"].valid.sum()) for g in range(s * 3, s * 3 + 3)) for s in range(run.steps)]
    assert min(sizes) == 0 and max(sizes) > 4 and np.mean(sizes) == pytest.approx(2, abs=0.3)
    empty = next(run.draws(g)["main"] for g in range(len(run)) if not run.draws(g)["main"].valid.any())
    assert len(empty) == 1 and empty.partners.shape == (1, 2)
    everything = Run((plan,), batch_size=99, epochs=1)
    assert everything.steps_per_epoch == 1 and everything.draws(0)["main"].valid.sum() == 30
    beside = Run(
        (StreamPlan("a", np.array([64]), 1), StreamPlan("main", np.array([50]), 1, "poisson", ratio=0.5)), batch_size=8
    )
    rows = [beside.draws(g)["main"] for g in range(len(beside))]
    assert 0 < np.mean([d.valid.sum() for d in rows]) < 8


@settings(max_examples=40, deadline=None)
@given(
    groups, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 1000), st.sampled_from(["shuffled", "sequential"])
)
def test_a_share_is_always_the_same_rows_and_a_larger_one_holds_a_smaller(sizes, one, other, seed, sampling):
    rows = sum(sizes)
    small, large = sorted((one, other))
    assert part(rows, small).sum() == max(1, round(small * rows)) and (part(rows, large) >= part(rows, small)).all()
    chosen = part(rows, small).astype(np.int16)
    sizes = np.array(sizes)
    plan = StreamPlan(
        "main", sizes, rows * 100, sampling, strata=chosen, weights=np.array([0.0, 1.0]), window_bytes=900
    )
    wanted = np.flatnonzero(chosen).tolist()
    for epoch in range(3):
        drawn = order(plan, seed, epoch).rows(0, plan.length).tolist()
        assert sorted(drawn) == wanted and (sampling == "shuffled" or drawn == wanted)
    drawn = Run(
        (StreamPlan("main", sizes, 1, "poisson", strata=chosen, weights=np.array([0.0, 1.0])),), batch_size=rows
    )
    assert sorted(drawn.draws(0)["main"].rows.tolist()) == wanted


def test_a_pass_takes_every_row_once():
    for sampling in ("balanced", "weighted", "poisson"):
        with pytest.raises(ValueError, match=f"sampling is {sampling}"):
            Pass((StreamPlan("main", np.array([4]), 1, sampling),), 2)


class Drawn(Task):
    """A task whose training stream is what its configuration's attribute says."""

    def __init__(self, **options):
        super().__init__(TaskConfig(kind="drawn"), {})
        self.options = options

    def streams(self, split):
        options = self.options if split == "train" else {"sampling": "sequential"}
        return {
            "main": Stream("train", split, Compose(Decode(), Keep("image", "label")), ("image", "label"), **options)
        }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("sampled"), {"train": 151, "val": 7}, per_group=16, per_file=64)


def run_of(dataset, **options) -> tuple[Feed, Run]:
    feed = Feed.of(Drawn(**options), {"train": dataset})
    return feed, Run.of(feed.streams["train"], feed.streams["val"], TrainConfig(batch_size=30, epochs=2), 1)


def test_labels_come_from_the_shards(dataset):
    feed, run = run_of(dataset, sampling="balanced")
    labels = np.arange(151) % 3
    plan = run.train[0]
    assert plan.strata.dtype == np.int16 and plan.strata.tolist() == labels.tolist()
    np.testing.assert_allclose(plan.weights, 1 / np.bincount(labels))
    batch = feed.follow(run).batch(0)
    assert batch["valid"].all() and (batch["label"] == batch["row_id"] % 3).all()
    only, run = run_of(dataset, sampling="weighted", weights=(0.0, 3.0, 1.0))
    seen = np.concatenate([only.follow(run).batch(g)["label"] for g in range(run.steps_per_epoch)])
    assert run.train[0].length == 100 and np.bincount(seen, minlength=3).tolist() == pytest.approx([0, 75, 25], abs=3)
    by_row, _ = run_of(dataset, sampling="weighted", by="row_id"), None
    assert by_row[1].train[0].length == 150  # row 0 weighs nothing
    _, run = run_of(dataset, sampling="identities", together=5)
    plan = run.train[0]
    assert plan.strata.tolist() == labels.tolist() and plan.together == 5
    assert sorted(order(plan, 0, 0).rows(0, 151)) == list(range(151))
    part_of, run = run_of(dataset, sampling="balanced", share=0.4)
    assert run.train[0].length == 60 and set(order(run.train[0], 0, 0).rows(0, 60)) <= set(
        np.flatnonzero(part(151, 0.4))
    )
    assert len(part_of.over("val", 4).plan) == 2
    whole = Feed.of(Drawn(sampling="balanced"), {"train": dataset}).over("train", 50)
    ids = np.concatenate([whole.batch(g)["row_id"] for g in range(4)])
    assert ids[ids >= 0].tolist() == list(range(151))


def test_identities_may_be_text(tmp_path):
    path, names = tmp_path / "part.parquet", ["ann", "bob", "ann", "cid", "bob", "ann"]
    pq.write_table(pa.table({"row_id": list(range(6)), "identity": names}), path)
    index = SplitIndex("train", (ShardFile(str(path), 6, (6,), path.stat().st_size),), Storage())
    found = strata(Stream("train", "train", Compose(), (), sampling="identities", by="identity"), index)
    assert found is not None and found[1].tolist() == [1, 1, 1]
    assert [names.index(name) for name in names] == [found[0].tolist().index(k) for k in found[0]]


def test_what_cannot_be_sampled_is_said_in_one_line(dataset):
    index = dataset.split("train")

    def refused(match, **options):
        with pytest.raises(UserError, match=match):
            strata(Stream("train", "train", Compose(), (), **options), index)

    refused("a share of 0", share=0.0)
    refused("a share of 1.5", share=1.5)
    refused(
        "label holds 0 to 2, and there are 2 weights, for class ids 0 to 1", sampling="weighted", weights=(1.0, 1.0)
    )
    refused("weights of -1 to 1; they must be finite", sampling="weighted", weights=(1.0, -1.0, 0.0))
    refused("weights of 0 to 0", sampling="weighted", weights=(0.0, 0.0, 0.0))
    refused("must be finite", sampling="weighted", weights=(1.0, float("nan"), 1.0))
    refused("no column grade", sampling="balanced", by="grade")
    refused("column image must be a number", sampling="weighted", by="image")
    refused("column image must be a number or text in every row; it is binary", sampling="identities", by="image")
    with pytest.raises(UserError, match=r"data.train has no grade, which the task needs"):
        run_of(dataset, sampling="balanced", by="grade")


def test_rows_without_a_class_are_refused(dataset, monkeypatch):
    monkeypatch.setattr("mapsto.data.strata._column", lambda index, name: np.array([0, 1, -1, -1], np.int32))
    with pytest.raises(UserError, match="2 rows have no label, which balanced sampling needs of each"):
        strata(Stream("train", "train", Compose(), (), sampling="balanced"), dataset.split("train"))
    monkeypatch.setattr("mapsto.data.strata._column", lambda index, name: np.array([0.5, 1.5], np.float32))
    with pytest.raises(UserError, match="needs class ids, and label is float32"):
        strata(Stream("train", "train", Compose(), (), sampling="balanced"), dataset.split("train"))


def test_a_row_drawn_again_in_an_epoch_is_augmented_otherwise_and_alike_in_any_world(dataset):
    def pictures(accumulate: int) -> dict[tuple[int, int], bytes]:
        transform = Compose(Decode(), PadCrop(8), Keep("image"))
        task = Drawn(sampling="weighted", weights=(1.0, 1.0, 8.0))
        task.streams = lambda split: {"main": Stream("train", split, transform, ("image",), **task.options)}
        feed = Feed.of(task, {"train": dataset}, ("train",))
        run = Run.of(feed.streams["train"], None, TrainConfig(batch_size=30, epochs=1, accumulate=accumulate), 1)
        feed, out = feed.follow(run), {}
        for g in range(len(run)):
            batch, draws = feed.batch(g), run.draws(g)["main"]
            for k in np.flatnonzero(draws.valid):
                out[int(batch["row_id"][k]), int(draws.draw[k])] = batch["image"][k].tobytes()
        return out

    one, other = pictures(1), pictures(3)
    assert one == other and len(one) == 151
    twice = [row for row, draw in one if draw == 1]
    assert len(twice) > 30 and np.mean([one[row, 0] != one[row, 1] for row in twice]) > 0.95


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 60), share=st.sampled_from([1.0, 0.5]))
@settings(max_examples=20, deadline=None)
def test_rows_of_several_classes_weigh_as_their_rarest(tmp_path_factory, seed, rows, share):
    rng = np.random.default_rng(seed)
    lists = [rng.choice(5, rng.integers(0, 4), p=[0.5, 0.3, 0.1, 0.07, 0.03]).tolist() for _ in range(rows)]
    lists[0] = None
    index = listed(tmp_path_factory.mktemp("lists"), pa.array(lists, pa.list_(pa.int64())))
    stream = Stream("train", "train", Compose(), (), sampling="balanced", by="labels", share=share)
    found = strata(stream, index)
    assert found is not None
    chosen = part(rows, share) if share < 1 else np.ones(rows, bool)
    held = [set(ids or ()) for ids, kept in zip(lists, chosen, strict=True) if kept]
    counts = [sum(k in ids for ids in held) for k in range(5)]
    for stratum, ids, kept in zip(found[0], lists, chosen, strict=True):
        wanted = max((np.sqrt(max(counts) / counts[k]) for k in ids or () if counts[k]), default=1.0) if kept else 0.0
        assert found[1][stratum] == pytest.approx(wanted)


def test_lists_of_words_are_no_classes(tmp_path):
    stream = Stream("train", "train", Compose(), (), sampling="balanced", by="labels")
    with pytest.raises(
        UserError, match=r"split 'train' of data.train: balanced sampling needs class ids, and labels is list"
    ):
        strata(stream, listed(tmp_path, pa.array([["a"], ["b"]])))


def test_a_negative_id_in_a_list_is_no_class(tmp_path):
    stream = Stream("train", "train", Compose(), (), sampling="balanced", by="labels")
    with pytest.raises(UserError, match=r"split 'train' of data.train: 2 rows hold a negative id in labels"):
        strata(stream, listed(tmp_path, pa.array([[0, 1], [-1, 1, -2], [], [-1]])))


def listed(folder, labels) -> SplitIndex:
    path, rows = folder / "part.parquet", len(labels)
    pq.write_table(pa.table({"row_id": list(range(rows)), "labels": labels}), path)
    return SplitIndex("train", (ShardFile(str(path), rows, (rows,), path.stat().st_size),), Storage())
