"""Keeps Ray Data's scheduling loop from spinning.

Ray 2.60's loop waits only for running tasks: while what they made is not wanted yet (the trainer is behind, which is
the aim), it turns without a pause and takes half a core from the training beside it. Here it rests while its consumer
has something to take, so the rest cannot starve anyone for longer than `REST_S`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

REST_S = 0.02


class Pace:
    """Ray Data's ExecutionCallback, for `DataContext.custom_execution_callback_classes`."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        pass

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        sink = executor._output_node
        if sink is not None and len(sink[1].output_queue):
            time.sleep(REST_S)

    def after_execution_succeeds(self, executor: StreamingExecutor) -> None:
        pass

    def after_execution_fails(self, executor: StreamingExecutor, error: Exception) -> None:
        pass
