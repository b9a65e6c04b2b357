"""An execution costs the same at its start however many tasks it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mapsto.data.execution import calls, each

Work = Callable[[int], Iterator[dict[str, Any]]]
pytestmark = [pytest.mark.clustered, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def squares() -> Work:
    def work(k: int) -> Iterator[dict[str, Any]]:
        for part in range(2):
            yield {"square": np.array([k * k]), "part": np.array([part])}

    return work


def test_all_tasks_run_once_in_order_and_each_row_is_a_block(squares: Work) -> None:
    found = [(int(row["square"]), int(row["part"])) for row in calls(squares, 5).iter_rows()]
    assert found == [(k * k, part) for k in range(5) for part in range(2)]
    assert calls(squares, 5).materialize().num_blocks() == 10


def test_a_billion_tasks_start_as_three_do(squares: Work) -> None:
    """Described one by one beforehand they would fill the memory."""
    rows = iter(calls(squares, 10**9).iter_rows())
    assert [int(next(rows)["square"]) for _ in range(6)] == [0, 0, 1, 1, 4, 4]


def test_another_data_set_made_beside_it_is_as_long_as_it_says(squares: Work) -> None:
    import ray.data

    ours = calls(squares, 3)
    assert ray.data.range(7).count() == 7
    assert len(list(ours.iter_rows())) == 6


def test_each_hands_the_numbers_on(tmp_path: Any) -> None:
    def note(k: int) -> None:
        (tmp_path / f"{k}-{os.getpid()}").touch()

    assert list(each(note, (7, 2, 30))) == [7, 2, 30]
    assert sorted(int(path.name.split("-")[0]) for path in tmp_path.iterdir()) == [2, 7, 30]
    assert list(each(note, ())) == []
