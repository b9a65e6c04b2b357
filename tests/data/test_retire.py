"""The tasks that Ray Data calls off end with their workers."""

from types import SimpleNamespace

from ray.data import DataContext, ExecutionOptions
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.stats import Timer

from mapsto.data.retire import Retire


def test_an_operator_that_is_shut_down_ends_its_tasks_by_force(monkeypatch):
    operator, forced = InputDataBuffer(DataContext.get_current(), []), []
    operator.start(ExecutionOptions(), None)
    monkeypatch.setattr(
        operator, "get_active_tasks", lambda: [SimpleNamespace(_cancel=lambda force: forced.append(force))]
    )
    Retire().before_execution_starts(SimpleNamespace(_topology={operator: None}))
    operator.shutdown(Timer(), force=False)
    assert forced == [True]
