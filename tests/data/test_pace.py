"""The loop goes on once a task has made something, and rests in every turn."""

from types import SimpleNamespace

from ray.data import DataContext

from mapsto.data import pace
from mapsto.data.execution import data_context
from mapsto.data.repeat import Repeat
from mapsto.data.retire import Retire


def test_rests_longer_while_output_waits_and_then_for_the_first_task_that_has_made_something(monkeypatch):
    rests, waits = [], []
    monkeypatch.setattr(pace.time, "sleep", rests.append)
    monkeypatch.setattr("ray.wait", lambda refs, **how: waits.append((refs, how)))
    task = SimpleNamespace(get_waitable=lambda: "made")
    for waiting, tasks in (([], []), (["bundle"], [task]), (["bundle"] * 3, []), ([], [task, task])):
        operator = SimpleNamespace(get_active_tasks=lambda tasks=tasks: tasks)
        sink = (None, SimpleNamespace(output_queue=waiting))
        known = SimpleNamespace(_global_limits=SimpleNamespace(cpu=2.0))
        executor = SimpleNamespace(_output_node=sink, _topology=[operator], _resource_manager=known)
        pace.Pace().on_execution_step(executor)
    assert rests == [pace.REST_S, pace.LONG_REST_S, pace.LONG_REST_S, pace.REST_S]
    how = {"num_returns": 1, "timeout": pace.WAIT_S, "fetch_local": False}
    assert waits == [(["made"], how), (["made", "made"], how)]


def test_asks_what_the_cluster_has_in_every_turn_until_it_is_known_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(pace.time, "sleep", lambda seconds: None)
    limits = SimpleNamespace(_global_limits=SimpleNamespace(cpu=0.0), _global_limits_last_update_time=1.0)
    executor = SimpleNamespace(_output_node=None, _topology=[], _resource_manager=limits)
    one = pace.Pace()
    for _ in range(pace.ASKED):
        limits._global_limits_last_update_time = 1.0
        one.on_execution_step(executor)
        assert limits._global_limits_last_update_time == 0.0  # long ago: Ray Data asks
    limits._global_limits_last_update_time = 1.0
    one.on_execution_step(executor)
    assert limits._global_limits_last_update_time == 1.0


def test_every_execution_of_ours_has_it_once_and_the_users_own_none():
    ours = data_context()
    assert ours.custom_execution_callback_classes == [pace.Pace, Repeat, Retire]
    assert DataContext.get_current().custom_execution_callback_classes == []
    with DataContext.current(ours):
        assert data_context().custom_execution_callback_classes == [pace.Pace, Repeat, Retire]
