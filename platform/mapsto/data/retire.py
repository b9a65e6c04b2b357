"""Ends the worker of a data task that is called off.

When a task fails, Ray Data interrupts those that are under way, wherever they are, and their processes go on to other
tasks. In the middle of an import that does harm: the package is imported anew, but the submodules that were there
already are not bound to it ("module 'aiohttp' has no attribute 'http_exceptions'"), and NumPy and OpenCV refuse a
second start. So here such a process ends, and Ray starts another when it needs one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .callback import Callback

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import PhysicalOperator
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class Retire(Callback):
    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        assert executor._topology is not None
        for operator in executor._topology:
            operator._cancel_active_tasks = partial(_end, operator)


def _end(operator: PhysicalOperator, force: bool) -> None:
    """What Ray Data does, by force; without its wait for the end of each task. An actor's task is called off as before."""
    for task in operator.get_active_tasks():
        task._cancel(force=True)
