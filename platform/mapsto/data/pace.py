"""The rhythm of Ray Data's scheduling loop: quick to answer, and never spinning.

Ray 2.60's loop waits up to 0.1 s for all running tasks to have made something. Two such turns pass between the end of
a task and the start of the next, which leaves a CPU idle for an eighth of a task of ours. And while what the tasks made
is not wanted yet (the trainer is behind, which is the aim), it turns without a pause and takes half a core from the
training beside it. Here it goes on as soon as one task has made something, and rests in every turn: briefly, or longer
while its consumer has something to take, so that the rest starves nobody.

What an execution may use of the cluster is asked once a second, and not known at its first turn, which so runs a single
task for a second. Here it is asked in every turn until it is known.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .callback import Callback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

REST_S = 0.005
LONG_REST_S = 0.02
WAIT_S = 0.1
ASKED = 200
"""Turns in which a cluster is asked anew for what it has; one that is full may have nothing for a while."""


class Pace(Callback):
    def __init__(self) -> None:
        self._asked = 0

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        from ray.data._internal.execution import streaming_executor_state

        there: Any = streaming_executor_state
        there.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.001  # of the loop's own wait, in this process

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        import ray

        limits = executor._resource_manager
        if limits._global_limits.cpu == 0 and self._asked < ASKED:
            self._asked += 1
            limits._global_limits_last_update_time = 0.0
            time.sleep(REST_S)
            return
        sink = executor._output_node
        time.sleep(LONG_REST_S if sink is not None and len(sink[1].output_queue) else REST_S)
        running = [task.get_waitable() for operator in executor._topology or () for task in operator.get_active_tasks()]
        if running:
            ray.wait(running, num_returns=1, timeout=WAIT_S, fetch_local=False)
