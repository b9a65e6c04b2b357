"""Two gloo processes against one: the same gradients, weights, buffers and metrics."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mapsto.config.schema import TrainConfig
from mapsto.engine.checkpoints import from_bytes
from mapsto.engine.fit import fit
from mapsto.engine.world import World
from tests.gloo import two

from .ranks import BATCH, CONFIG, HALF, THAWED, VAL, train
from .toy import Adversaries, Regression, items, rows


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    two("tests.engine.ranks", str(folder))
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


@pytest.mark.parametrize(
    ("run", "task", "config"),
    [
        ("plain", Regression, CONFIG),
        ("accumulated", Regression, CONFIG),
        ("thawed", Regression, THAWED),
        ("half", Regression, HALF),
        ("gan", Adversaries, CONFIG),
    ],
)
def test_unequal_shards_train_as_one_process(ranks: Any, run: str, task: Any, config: Any) -> None:
    weights, history = train(0, 1, task(), config)
    near = 100 if config.get("precision") else 1
    for rank in ranks:
        for name, value in weights.items():
            np.testing.assert_array_equal(rank[run][0][name], ranks[0][run][0][name], err_msg=name)
            np.testing.assert_allclose(rank[run][0][name], value, rtol=near * 2e-5, atol=near * 2e-6, err_msg=name)
        for mine, theirs in zip(history, rank[run][1], strict=True):
            assert list(mine) == list(theirs)
            for name in (k for k in mine if k.startswith(("train/", "val/"))):
                assert theirs[name] == pytest.approx(mine[name], rel=near * 1e-4), name
            assert theirs["val/rows"] == VAL


def test_buffers_end_equal_on_all_ranks(ranks: Any) -> None:
    first, second = (rank["norm"][0] for rank in ranks)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_gather_joins_unequal_rows_and_sums_gradients(ranks: Any) -> None:
    expected = np.concatenate([np.arange(6.0).reshape(3, 2), np.arange(4.0).reshape(2, 2)])
    for rank in ranks:
        everyone, grad = rank["gathered"]
        np.testing.assert_array_equal(everyone, expected)
        np.testing.assert_array_equal(grad, np.full_like(grad, 3.0))


def test_a_loss_that_is_not_finite_stops_every_rank_with_the_same_line(
    ranks: Any,
) -> None:
    first, second = (rank["error"] for rank in ranks)
    assert first == second
    assert "not finite at step" in first and "lr 1e+30" in first and "rows " in first


def test_what_one_rank_is_asked_all_heed_after_the_same_step(ranks: Any) -> None:
    for found in (rank["asked"] for rank in ranks):
        assert found["told"] == [(2, True)]
        for name, value in found["whole"].items():  # each rank's running statistics are its own in mid-epoch
            np.testing.assert_array_equal(found["again"][name], value, err_msg=name)


def test_a_state_of_two_ranks_goes_on_with_one_over_the_same_global_batches(ranks: Any) -> None:
    found = ranks[0]["asked"]
    state = from_bytes(found["state"])
    assert len(state["ranks"]) == 2
    means = [rank["1.running_mean"] for rank in state["ranks"]]
    assert not torch.equal(*means)
    task = Regression(norm=True)
    model, mine = task.build({}), items(rows(21), rows(VAL, 1), batch=BATCH, epochs=2)
    taken = [pair for pair in mine if pair[0].step >= state["step"]]
    seen: list[Any] = []
    fit(task, model, TrainConfig(**CONFIG), taken, World(), 3, state, on_epoch=lambda epoch: seen.append(epoch.record))
    assert [(record["epoch"], record["step"]) for record in seen] == [(1, 3), (2, 6)]
    for name, value in model.state_dict().items():  # a batch norm over more rows at once: near, not the same
        np.testing.assert_allclose(value, found["whole"][name], atol=0.15, err_msg=name)
