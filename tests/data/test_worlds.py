"""One run on 1, 2 and 64 workers: several streams with a ratio, partners and parts of a split, whole and resumed."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.data.order import StreamPlan
from mapsto.data.plan import Run
from mapsto.data.strata import part

WORLDS = (1, 2, 64)
Found = dict[str, list[tuple[int, int, int, int, tuple[int, ...]]]]


def streams(sizes: list[int], other: list[int], ratio: float, share: float, sampling: str) -> tuple[StreamPlan, ...]:
    """A stream with two partners, over a share of a split; another one that runs along."""
    groups, beside = np.array(sizes, np.int64), np.array(other, np.int64)
    rows = int(groups.sum())
    if sampling == "shuffled" and share == 1:
        main = StreamPlan("main", groups, rows * 100, partners=2, window_bytes=1500)
    else:
        chosen = part(rows, share).astype(np.int16)
        main = StreamPlan(
            "main", groups, rows * 100, sampling, 2, strata=chosen, weights=np.array([0.0, 1.0]), window_bytes=1500
        )  # fmt: skip
    return main, StreamPlan("beside", beside, int(beside.sum()) * 100, ratio=ratio, partners=1, window_bytes=900)


def consumed(run: Run, start: int = 0) -> Found:
    """Stream → (step, epoch, row, draw, partners) of every valid draw, from a microbatch on, worker by worker."""
    found: Found = {stream.name: [] for stream in run.train}
    for rank in range(run.world):
        for g in range(start + rank, len(run), run.world):
            step = run.item(g).step
            for name, draws in run.draws(g).items():
                for k in np.flatnonzero(draws.valid):
                    key = (step, int(draws.epochs[k]), int(draws.rows[k]), int(draws.draw[k]))
                    found[name].append((*key, tuple(draws.partners[k].tolist())))
    return {name: sorted(draws) for name, draws in found.items()}


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(5, 60), min_size=2, max_size=8),
    st.lists(st.integers(3, 30), min_size=1, max_size=4),
    st.sampled_from([0.25, 1.0, 1.5]),
    st.sampled_from([0.4, 1.0]),
    st.sampled_from(["shuffled", "weighted", "poisson"]),
    st.integers(64, 130),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 2**31),
    st.data(),
)
def test_any_number_of_workers_takes_the_same_draws_and_goes_on_where_another_stopped(
    sizes, other, ratio, share, sampling, batch, accumulate, drop_last, seed, data
):
    plans = streams(sizes, other, ratio, share, sampling)
    drop_last = drop_last and plans[0].length >= batch
    runs = [
        Run(plans, (), seed, batch, world, accumulate if world < 64 else 1, drop_last, epochs=2) for world in WORLDS
    ]
    whole = [consumed(run) for run in runs]
    assert whole[0] == whole[1] == whole[2]
    for draws in whole[0].values():
        assert len({key[1:4] for key in draws}) == len(draws)  # none twice
    if sampling != "poisson":
        per_epoch = runs[0].steps_per_epoch * batch if drop_last else plans[0].length
        assert len(whole[0]["main"]) == 2 * per_epoch
    elsewhere = np.flatnonzero(part(plans[0].rows, share) == 0)
    assert not {key[2] for key in whole[0]["main"]} & set(elsewhere.tolist())  # of the other part: no row, no partner
    assert not {p for key in whole[0]["main"] for p in key[4]} & set(elsewhere.tolist())
    before, after = data.draw(st.permutations(runs))[:2]
    epoch, step = data.draw(st.integers(0, 1)), data.draw(st.integers(0, before.steps_per_epoch - 1))
    done = epoch * before.steps_per_epoch + step
    rest = consumed(pickle.loads(pickle.dumps(after)), after.start_of(epoch, step))
    for name, draws in whole[0].items():
        assert [key for key in draws if key[0] < done] + rest[name] == draws


def test_a_streams_ratio_holds_in_every_step_on_64_workers():
    run = Run(streams([50, 70, 80], [11, 9], 1.5, 1.0, "shuffled"), seed=3, batch_size=64, world=64, epochs=2)
    for step in range(run.steps):
        draws = [run.draws(g) for g in range(step * run.parts, (step + 1) * run.parts)]
        count = {name: sum(int(d[name].valid.sum()) for d in draws) for name in ("main", "beside")}
        assert count["beside"] == round(1.5 * count["main"])
    cycles: dict[int, list[int]] = {}
    for _, epoch, row, _, _ in consumed(run)["beside"]:
        cycles.setdefault(epoch, []).append(row)
    assert all(sorted(rows) == list(range(20)) for rows in list(cycles.values())[:-1])
