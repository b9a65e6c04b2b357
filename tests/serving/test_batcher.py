"""Batches fill, nobody waits for nobody, errors reach those they concern."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from mapsto.serving.batcher import Batcher

PATIENCE_S = 120


def test_answers_come_back_to_whom_they_belong_and_batches_are_full() -> None:
    seen: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        seen.append(len(items))
        time.sleep(0.005)
        return [2 * item for item in items]

    async def main() -> list[list[int]]:
        batcher = Batcher(run, size=8, wait_s=0.0)
        return await asyncio.gather(*[batcher.submit([n]) for n in range(64)])

    assert asyncio.run(main()) == [[2 * n] for n in range(64)]
    assert seen == [8] * 8


def test_a_lone_request_does_not_wait() -> None:
    async def main() -> list[int]:
        batcher = Batcher(lambda items: list(items), size=8, wait_s=3600.0, coming=lambda: 0)
        return await asyncio.wait_for(batcher.submit([1]), PATIENCE_S)

    assert asyncio.run(main()) == [1]


def test_it_waits_for_those_on_their_way_but_not_for_ever() -> None:
    sizes: list[int] = []
    coming = 1

    def run(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return list(items)

    async def main() -> None:
        nonlocal coming
        batcher = Batcher(run, size=8, wait_s=0.2, coming=lambda: coming)

        async def later() -> None:
            nonlocal coming
            await asyncio.sleep(0.02)
            coming = 0
            await batcher.submit([2])

        await asyncio.gather(batcher.submit([1]), later())
        coming = 1
        await asyncio.wait_for(batcher.submit([3]), PATIENCE_S)

    asyncio.run(main())
    assert sizes == [2, 1]


def test_a_large_request_is_cut_into_batches() -> None:
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return list(items)

    assert asyncio.run(Batcher(run, size=4, wait_s=0.0).submit(list(range(10)))) == list(range(10))
    assert sizes == [4, 4, 2]


def test_an_error_reaches_its_batch_and_the_next_one_works() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if -1 in items:
            raise RuntimeError("broken")
        return list(items)

    async def main() -> None:
        batcher = Batcher(run, size=4, wait_s=0.0)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.submit([-1])
        assert await batcher.submit([5]) == [5]

    asyncio.run(main())


def test_one_that_gave_up_is_not_computed() -> None:
    entered, release, seen = threading.Event(), threading.Event(), []

    def run(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        entered.set()
        release.wait(5)
        return list(items)

    async def main() -> None:
        batcher = Batcher(run, size=1, wait_s=0.0)
        first = asyncio.create_task(batcher.submit([1]))
        await asyncio.to_thread(entered.wait, 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit([2]), 0.02)
        release.set()
        assert await first == [1]
        assert await batcher.submit([3]) == [3]

    asyncio.run(main())
    assert seen == [1, 3]


def test_an_error_among_the_answers_reaches_its_item_alone() -> None:
    def run(items: Sequence[int]) -> list[int | Exception]:
        return [RuntimeError("broken") if item < 0 else item for item in items]

    async def main() -> list[object]:
        batcher: Batcher[int, int] = Batcher(run, size=4, wait_s=0.0)
        return await asyncio.gather(*[batcher.submit([n]) for n in (1, -1, 2)], return_exceptions=True)

    one, error, two = asyncio.run(main())
    assert (one, two) == ([1], [2]) and isinstance(error, RuntimeError)
