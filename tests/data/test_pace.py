"""The loop rests only while its consumer has something to take."""

from types import SimpleNamespace

from ray.data import DataContext

from mapsto.data import pace
from mapsto.data.execution import data_context
from mapsto.data.retire import Retire


def test_rests_while_output_waits_and_never_while_the_consumer_does(monkeypatch):
    rests = []
    monkeypatch.setattr(pace.time, "sleep", rests.append)
    for waiting in ([], ["bundle"], ["bundle"] * 3, []):
        pace.Pace().on_execution_step(SimpleNamespace(_output_node=(None, SimpleNamespace(output_queue=waiting))))
    assert rests == [pace.REST_S] * 2


def test_every_execution_of_ours_has_it_once_and_the_users_own_none():
    ours = data_context()
    assert ours.custom_execution_callback_classes == [pace.Pace, Retire]
    assert DataContext.get_current().custom_execution_callback_classes == []
    with DataContext.current(ours):
        assert data_context().custom_execution_callback_classes == [pace.Pace, Retire]
