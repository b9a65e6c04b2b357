"""The arithmetic that refuses a run which would wait for ever."""

from __future__ import annotations

from typing import Any

import pytest

from mapsto.config.load import load
from mapsto.core.errors import UserError
from mapsto.runtime import resources
from mapsto.runtime.resources import estimate, refuse_unfitting, require_cpus, trials_at_once


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus", "message"),
    [
        ([2], 2, 1, 0, "train.workers 2 x cpus_per_worker 1 = 2 CPUs, and loading needs 1 more, but the cluster has 2: set train.cpus_per_worker=0.5"),
        ([8], 3, 4, 0, "train.workers 3 x cpus_per_worker 4 = 12 CPUs, and loading needs 1 more, but the cluster has 8: set train.cpus_per_worker=2.3"),
        ([1], 1, 1, 0, "train.workers 1 x cpus_per_worker 1 = 1 CPUs, and loading needs 1 more, but the cluster has 1: a cluster of at least 2 CPUs is needed (on one machine: mapsto ... --cpus 2)"),
        ([4, 4], 1, 6, 0, "train.cpus_per_worker 6 fits no node: the largest has 4 CPUs"),
        ([2, 2], 5, 0.6, 0, "train.workers 5 x cpus_per_worker 0.6 leave 0.8 and 0.2 of nodes of 2, 2 CPUs, and loading needs a whole one of one node: set train.cpus_per_worker=0.5"),
        ([3, 3, 3], 4, 2, 0, "train.workers 4 x cpus_per_worker 2 do not fit on nodes of 3, 3, 3 CPUs: a worker takes its 2 CPUs of one node; set train.cpus_per_worker=1.5"),
        ([4], 2, 1, 1, "train.workers 2 x gpus_per_worker 1 = 2 GPUs, but the cluster has 0: set train.gpus_per_worker=0"),
    ],
)  # fmt: skip
def test_refused_with_the_arithmetic(nodes: list[float], workers: int, cpus: float, gpus: float, message: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_unfitting([{"CPU": n} for n in nodes], workers, cpus, gpus, 1, "train")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus", "message"),
    [
        ([(16, 1), (2, 1)], 2, 4, 1, "train.workers 2 x cpus_per_worker 4 do not fit on nodes of 16, 2 CPUs: a worker takes its 4 CPUs and 1 GPUs of one node; set train.cpus_per_worker=2"),
        ([(4, 1), (4, 0)], 1, 16, 1, "train.workers 1 x cpus_per_worker 16 = 16 CPUs, and loading needs 1 more, but the cluster has 8: set train.cpus_per_worker=4"),
        ([(1, 0), (0.05, 1)], 1, 1, 1, "train.workers 1 x cpus_per_worker 1 = 1 CPUs, and loading needs 1 more, but the cluster has 1.05: nodes of more CPUs beside their GPUs are needed: a worker takes 1 CPUs and 1 GPUs of one node"),
        ([(2, 0)], 2, 1, 1, "train.workers 2 x gpus_per_worker 1 = 2 GPUs, but the cluster has 0: set train.gpus_per_worker=0"),
    ],
)  # fmt: skip
def test_the_advice_reckons_with_where_the_gpus_are(
    nodes: list[tuple[float, float]], workers: int, cpus: float, gpus: float, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        refuse_unfitting([{"CPU": n, "GPU": g} for n, g in nodes], workers, cpus, gpus, 1, "train")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("all_", "now", "gpus", "message"),
    [
        ([(16, 1)], [(15, 0)], 1, "train needs 1 GPUs, and only 0 of the cluster's 1 are free: other jobs or"),
        ([(4, 0)], [(1, 0)], 0, "train needs 3 CPUs, and only 1 of the cluster's 4 are free: other jobs or"),
        ([(4, 0), (4, 0)], [(1.5, 0), (1.5, 0)], 0, "train needs 1 workers of 2 CPUs, each on one node, and a whole CPU of one node for loading, which do not fit into the 1.5 and 1.5 CPUs that the nodes have free: other jobs or"),
    ],
)  # fmt: skip
def test_what_others_hold_is_named(
    monkeypatch: pytest.MonkeyPatch, all_: list[Any], now: list[Any], gpus: float, message: str
) -> None:
    nodes, free = ([{"CPU": n, "GPU": g} for n, g in each] for each in (all_, now))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(resources, "free_nodes", lambda: free)
    with pytest.raises(UserError) as caught:
        require_cpus(1, 2, gpus, wait_s=0)
    assert str(caught.value).startswith(message)


def test_a_sweep_s_advice_names_train_s_setting() -> None:
    with pytest.raises(UserError, match=r"^tune\.workers 2 x cpus_per_worker 1 .* set train\.cpus_per_worker=0\.45$"):
        refuse_unfitting([{"CPU": 2}], 2, 1, 0, 1.1, "tune")


@pytest.mark.parametrize(("nodes", "workers", "cpus"), [([2], 2, 0.5), ([4], 3, 1), ([1, 1, 1], 2, 1)])
def test_what_fits_is_not_refused(nodes: list[float], workers: int, cpus: float) -> None:
    refuse_unfitting([{"CPU": n} for n in nodes], workers, cpus, 0, 1, "train")


@pytest.mark.parametrize(("have", "workers"), [(2, 2), (8, 3), (5, 7), (64, 9)])
def test_the_advice_given_fits(have: float, workers: int) -> None:
    with pytest.raises(UserError) as caught:
        refuse_unfitting([{"CPU": have}], workers, 32, 0, 1, "train")
    advised = float(str(caught.value).rsplit("=", 1)[1])
    refuse_unfitting([{"CPU": have}], workers, advised, 0, 1, "train")


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus", "asked", "count"),
    [
        ([4], 1, 0.5, 0, None, 2),  # a CPU of data for each: 2 x 1.5
        ([4], 1, 0.5, 0, 5, 5),  # 2.5, and 1.5 for all their data
        ([4], 1, 0.5, 0, 9, 6),  # 3, and the 1 that is never given away
        ([2], 1, 0.5, 0, 9, 2),
        ([4], 2, 0.5, 0, 9, 3),
        ([2, 2], 1, 2, 0, None, 1),
        ([2], 1, 1, 0, 4, 1),
        ([16], 1, 1, 1, None, 2),  # two GPUs
        ([2, 2], 1, 0.6, 0, 9, 3),  # 2 of the one, 1 of the other: a fourth would leave 0.8 of each
        ([1.5, 1.5], 1, 0.5, 0, None, 2),  # a CPU of data and a trial on each
    ],
)
def test_trials_at_once_leave_the_data_its_cpu(
    nodes: list[float], workers: int, cpus: float, gpus: float, asked: int | None, count: int
) -> None:
    given = [{"CPU": n, "GPU": 2.0} for n in nodes]
    found, most, line = trials_at_once(given, workers, cpus, gpus, asked)  # ty: ignore[invalid-argument-type]
    assert found == count
    assert most * workers * cpus + 1 <= max(sum(nodes), workers * cpus + 1)
    assert bool(line) == (asked is not None and asked > count)
    if line:
        assert f"tune.concurrent {asked}: a trial takes {workers * cpus:g} CPUs" in line
        assert line.endswith(f"{count} at a time")


def test_estimate_follows_the_recipe() -> None:
    text = "name: a\nroot: /tmp/a\ndata: {train: {source: /tmp/i}}\ntask: {kind: classify, image_size: 32}\n"
    small = {need.stage: need for need in estimate(load(text))}
    large = {
        need.stage: need
        for need in estimate(load(text, ["train.workers=4", "train.batch_size=4096", "task.image_size=224"]))
    }
    assert small["train"].cpus == 2
    assert large["train"].cpus == 5
    pixels = 4096 * 224 * 224 * 3 / 2**20  # one global batch, MiB
    assert large["train"].memory_mb - small["train"].memory_mb > 3 * 900 + 7 * pixels
    assert "tune" not in small


def test_held_cpus_are_named(cluster: str) -> None:
    import ray

    @ray.remote(num_cpus=3)
    class Holder:
        def ready(self) -> bool:
            return True

    require_cpus(2, 1, wait_s=30)
    holder = Holder.remote()
    ray.get(holder.ready.remote())
    with pytest.raises(UserError, match=r"train needs 3 CPUs, and only 1 of the cluster's 4 are free"):
        require_cpus(2, 1, wait_s=0.5)
    ray.kill(holder)
    require_cpus(2, 1, wait_s=30)
