"""The shape of Ray Data's ExecutionCallback, for `DataContext.custom_execution_callback_classes`: nothing at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class Callback:
    """Its subclasses say what they do; Ray's own class would have to be imported with Ray."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        pass

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        pass

    def after_execution_succeeds(self, executor: StreamingExecutor) -> None:
        pass

    def after_execution_fails(self, executor: StreamingExecutor, error: Exception) -> None:
        pass
