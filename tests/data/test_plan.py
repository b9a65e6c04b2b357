"""The plan of a run, against what it promises: every row once, the same steps on any world, exact resumption."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.config.training import TrainConfig
from mapsto.core.errors import UserError
from mapsto.data.order import StreamPlan, order
from mapsto.data.plan import Pass, Run
from mapsto.stages.train import rewound

groups = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def stream(sizes, name="main", **options) -> StreamPlan:
    sizes = np.array(sizes, np.int64)
    return StreamPlan(name, sizes, int(sizes.sum()) * 100, **options)


def epoch_rows(run: Run, epoch: int) -> list[int]:
    """The valid training rows of an epoch, over all microbatches."""
    out = []
    for g in range(len(run)):
        if run.item(g).split == "train" and run.item(g).epoch == epoch:
            draws = run.draws(g)["main"]
            out += draws.rows[draws.valid].tolist()
    return out


def global_batches(run: Run) -> list[tuple[int, list[int]]]:
    steps: dict[int, list[int]] = {}
    for g in range(len(run)):
        item, draws = run.item(g), run.draws(g)["main"]
        if item.split == "train":
            steps.setdefault(item.step, []).extend(draws.rows[draws.valid].tolist())
    return sorted(steps.items())


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(1, 33), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31), st.integers(100, 4000))
def test_every_row_once_an_epoch_and_steps_independent_of_world(sizes, batch, world, accumulate, seed, window):
    main = stream(sizes, window_bytes=window)
    run = Run((main,), seed=seed, batch_size=batch, world=world, accumulate=accumulate, epochs=2)
    for epoch in range(2):
        assert sorted(epoch_rows(run, epoch)) == list(range(main.rows))
    alone = Run((main,), seed=seed, batch_size=batch, epochs=2)
    assert global_batches(run) == global_batches(alone)
    sizes_of = [len(run.draws(g)["main"]) for g in range(run.parts)]
    assert max(sizes_of) - min(sizes_of) <= 1


@settings(max_examples=60, deadline=None)
@given(groups, groups, st.integers(1, 20), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_items_come_in_order_and_positions_are_found_again(train, val, batch, world, epochs, every, drop_last):
    main, held_out = stream(train), stream(val, sampling="sequential")
    if drop_last and main.rows < batch:
        with pytest.raises(UserError, match="drop_last"):
            Run((main,), batch_size=batch, drop_last=True)
        return
    run = Run((main,), (held_out,), 7, batch, world, 1, drop_last, epochs, every)
    items = [run.item(g) for g in range(len(run))]
    assert len(run) % world == 0
    evaluated = [e for e in range(epochs) if (e + 1) % every == 0 or e == epochs - 1]
    assert sorted({i.epoch for i in items if i.split == "val"}) == evaluated
    for epoch in range(epochs):
        assert items[run.start_of(epoch)] == items[run.start_of(epoch, 0)]
        first = items[run.start_of(epoch)]
        assert (first.split, first.epoch, first.micro, first.step) == ("train", epoch, 0, epoch * run.steps_per_epoch)
        if epoch in evaluated:
            begins = items[run.start_of(epoch, run.steps_per_epoch)]
            assert (begins.split, begins.epoch, begins.micro) == ("val", epoch, 0)
            at = run.start_of(epoch, run.steps_per_epoch)
            rows = [run.draws(at + m)["main"] for m in range(len(run.evaluation))]
            assert len({len(d) for d in rows}) == 1
            assert np.concatenate([d.rows[d.valid] for d in rows]).tolist() == list(range(held_out.rows))
    for rank in range(world):
        mine = items[rank::world]
        assert sum(i.ends_step for i in mine) == run.steps
        assert sum(i.ends_epoch for i in mine) == epochs
        assert mine[-1].ends_epoch
        ends = [k for k, i in enumerate(mine) if i.ends_epoch]
        assert all(k + 1 == len(mine) or mine[k + 1].epoch == mine[k].epoch + 1 for k in ends)


@settings(max_examples=30, deadline=None)
@given(groups, st.integers(1, 40), st.integers(1, 3), st.integers(1, 9))
def test_an_evaluation_holds_the_same_rows_on_any_world_and_no_more_at_once_than_training(
    sizes, batch, accumulate, world
):
    held_out = stream(sizes, sampling="sequential")
    run = Run((stream([40, 40]),), (held_out,), batch_size=batch, world=world, accumulate=accumulate)
    assert run.evaluation is not None
    draws = [run.evaluation.draws(g)["main"] for g in range(len(run.evaluation))]
    assert np.concatenate([each.rows[each.valid] for each in draws]).tolist() == list(range(held_out.rows))
    assert max(map(len, draws)) <= max(len(run.draws(g)["main"]) for g in range(run.parts))


def test_epochs_differ_seeds_differ_and_a_run_repeats():
    main = stream([32] * 20)
    run = Run((main,), seed=1, batch_size=64, epochs=3)
    first, second = epoch_rows(run, 0), epoch_rows(run, 1)
    assert first != second
    assert first != epoch_rows(Run((main,), seed=2, batch_size=64, epochs=3), 0)
    again = pickle.loads(pickle.dumps(run))
    assert epoch_rows(again, 1) == second and again.train[0] == main and hash(again.train[0]) == hash(main)


def test_a_small_split_is_shuffled_as_a_whole_and_a_large_one_within_windows():
    whole = order(stream([50] * 20), 0, 0).rows(0, 1000)
    assert len(set((whole[:100] // 50).tolist())) > 15
    windowed = stream([50] * 20, window_bytes=100 * 50 * 4)  # four groups to a window
    rows = order(windowed, 0, 0).rows(0, 1000)
    assert sorted(rows.tolist()) == list(range(1000))
    for start in range(0, 1000, 200):
        assert len(set((rows[start : start + 200] // 50).tolist())) == 4
    assert order(windowed, 0, 0).rows(130, 470).tolist() == rows[130:470].tolist()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3))
def test_microbatches_are_cut_between_pairs_where_rows_meet_their_neighbours(batch, world, accumulate):
    main = stream([20, 20, 17], pairs=True)
    run = Run((main,), batch_size=batch, world=world, accumulate=accumulate)
    alone = Run((main,), batch_size=batch)
    assert global_batches(run) == global_batches(alone)
    for start in range(0, len(run), run.parts):
        valid = [int(run.draws(g)["main"].valid.sum()) for g in range(start, start + run.parts)]
        *first, last = [count for count in valid if count]
        assert all(count % 2 == 0 for count in first)
        assert last > 1 or sum(valid) == 1  # an odd one out meets the pair before it
        of_rank = [sum(valid[rank::world]) for rank in range(world)]
        assert max(of_rank) - min(of_rank) <= 3 and max(valid) - min(valid) <= 3
    assert run.largest["main"] == -(-batch // run.parts)
    full = Run((main,), batch_size=batch, world=world, descent="full_batch")
    assert max(int(full.draws(g)["main"].valid.sum()) for g in range(full.parts)) <= max(batch, 2) + 1


@pytest.mark.parametrize(
    ("batch", "world", "accumulate", "options", "least"),
    [(6, 2, 1, {"pairs": True}, 2), (6, 2, 1, {}, 3), (7, 2, 2, {"pairs": True}, 0), (16, 2, 2, {"pairs": True}, 8), (6, 2, 1, {"sampling": "poisson"}, 0)],
)  # fmt: skip
def test_the_least_rows_of_a_worker_in_a_step(batch, world, accumulate, options, least):
    """What a run that is resumed with SWA reckons with, to read as many rows as it needs once more."""
    run = Run((stream([20, 20, 17], **options),), batch_size=batch, world=world, accumulate=accumulate)
    assert run.least_rows == least
    full = (run.steps_per_epoch - 1) * run.parts
    rows = np.array([int(run.draws(g)["main"].valid.sum()) for g in range(full)])
    assert rows.reshape(-1, run.parts // world, world).sum(1).min() >= least
    wanted, swa = 5, TrainConfig(epochs=1, swa={"start": 0.0, "rows": 5})
    first = rewound(run, swa, 0, run.steps_per_epoch)
    read = rows.reshape(-1, run.parts // world, world).sum(1)[first:].sum(0)
    assert first == 0 or read.min() >= wanted


def test_the_largest_microbatch_may_be_an_evaluations():
    held_out = stream([5000], sampling="sequential")
    assert Run((stream([50]),), (held_out,), descent="stochastic").largest == {"main": 256}
    assert Run((stream([50]),), (held_out,), batch_size=256).largest == {"main": 256}
    two = Run((stream([50]), stream([9], name="style", ratio=0.5)), batch_size=32, world=2)
    assert two.largest == {"main": 16, "style": 8}
    assert Pass((held_out, stream([9], name="style", ratio=0.5)), 32).largest == {"main": 32, "style": 16}


def test_full_batch_and_stochastic_descent():
    main = stream([10, 13])
    full = Run((main,), batch_size=5, world=2, epochs=2, descent="full_batch")
    assert full.steps_per_epoch == 1 and full.parts == 6
    assert sorted(epoch_rows(full, 0)) == list(range(23))
    single = Run((main,), (stream([6], sampling="sequential"),), batch_size=99, world=2, epochs=1, descent="stochastic")
    assert single.steps_per_epoch == 23
    assert all(int(single.draws(g)["main"].valid.sum()) == (g % 2) for g in range(46))
    assert len(single.draws(46)["main"]) == 3


def test_further_streams_run_in_epochs_of_their_own():
    run = Run((stream([8, 8]), stream([5], name="style", ratio=0.5)), batch_size=8, world=2, epochs=5)
    drawn = [(int(e), int(r)) for g in range(len(run)) for e, r in zip(*_style(run, g), strict=True)]
    assert len(drawn) == 5 * 2 * 4
    for cycle in range(7):
        assert sorted(r for e, r in drawn if e == cycle) == list(range(5))


def _style(run, g):
    draws = run.draws(g)["style"]
    return draws.epochs[draws.valid], draws.rows[draws.valid]


def test_partners_come_from_the_split_and_do_not_depend_on_the_world():
    main = stream([16] * 4, partners=3)
    runs = [Run((main,), seed=3, batch_size=16, world=w) for w in (1, 2)]
    one, two = ({int(r): p.tolist() for g in range(len(run)) for r, p in _pairs(run, g)} for run in runs)
    assert one == two and all(len(p) == 3 and min(p) >= 0 and max(p) < 64 for p in one.values())


def _pairs(run, g):
    draws = run.draws(g)["main"]
    return zip(draws.rows, draws.partners, strict=True)


def test_a_pass_pads_its_last_microbatch_and_fills_up_the_world():
    plan = Pass((stream([7], sampling="sequential"),), 4, world=3)
    draws = [plan.draws(g)["main"] for g in range(len(plan))]
    assert [d.valid.tolist() for d in draws] == [[True] * 4, [True] * 3 + [False], [False] * 4]
    assert np.concatenate([d.rows[d.valid] for d in draws]).tolist() == list(range(7))
    assert [plan.item(g).ends_epoch for g in range(3)] == [True] * 3
