"""How mapsto runs Ray Data: quiet, in order, without counting on what trainers hold, and with clear errors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..core.errors import UserError
from .pace import Pace
from .repeat import TIMES, Repeat, number
from .retire import Retire

if TYPE_CHECKING:
    import ray.data
    from ray.data import DataContext

log = logging.getLogger("mapsto.loader")
MOST_TRIES = 6
"""How often one task is begun anew where the process or the node that ran it was lost. Ray Data has no limit of its own: a
file whose decoder crashes, or rows that do not fit into memory, would be tried for ever."""
RETRY_NOTE = "\nFailed to apply UDF transform"
"""Where Ray Data's own words begin, which it appends to the text of every error."""


def hush() -> None:
    """Keep Ray Data's progress messages out of this process's log; `MAPSTO_DEBUG=1` lets them through."""
    if not os.environ.get("MAPSTO_DEBUG"):
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
        for tracebacks in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
            logging.getLogger(tracebacks).setLevel(logging.CRITICAL)  # the error is raised where the data is read


def data_context(cpus: float = 0.0, gpus: float = 0.0) -> DataContext:
    """The context of our executions: order kept, errors as they were raised, every row a block of its own.

    `cpus`, `gpus`: what others on the cluster hold, and data tasks may not count on.
    """
    from ray.data import DataContext, ExecutionResources

    hush()
    context = DataContext.get_current().copy()
    context.remove_config(TIMES)
    debug = bool(os.environ.get("MAPSTO_DEBUG"))
    context.enable_progress_bars = debug
    context.print_on_execution_start = debug
    context.enable_operator_progress_bars = debug
    context.target_max_block_size = 1  # bytes
    context.raise_original_map_exception = True
    context.max_errored_blocks = 0  # a program of the user's own may allow some, which would be missing without a word
    ours: list[Any] = [Pace, Repeat, Retire]  # callbacks by their shape
    others = [each for each in context.custom_execution_callback_classes if each not in ours]
    context.custom_execution_callback_classes = [*others, *ours]
    context.execution_options.preserve_order = True
    with warnings.catch_warnings():
        # Ray means to replace this in 2027 by labelled nodes, which a single machine does not have.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.execution_options.exclude_resources = ExecutionResources(cpu=cpus, gpu=gpus)
    return context


@dataclass(frozen=True)
class _Call:
    work: Callable[[int], Iterator[Any]]
    most: int

    def __call__(self, _: Any) -> Iterator[Any]:
        k, before = number(), tries()
        what = self.work.named(k) if isinstance(self.work, Named) else f"task {k + 1}"
        if before >= self.most:
            raise UserError(
                f"{what}: the process that made them was lost {before} times; the log of its node says why: out of memory "
                "(fewer at once: a smaller train.batch_size, or smaller images), or a file that crashes its decoder"
            )
        if before:
            log.warning("%s again, try %d: the worker or the node that made them was lost", what, before + 1)
        return self.work(k)


@runtime_checkable
class Named(Protocol):
    """Work that says what its task k makes."""

    def named(self, k: int) -> str: ...


def tries() -> int:
    """In a task: how often Ray ran it before; 0 where no Ray runs."""
    from ray._private import worker

    here: Any = worker.global_worker  # its core worker is there once Ray runs
    if not here.connected:
        return 0
    return here.core_worker.get_current_task_attempt_number()


def calls(
    work: Callable[[int], Iterator[Any]], count: int, *, cpus: float = 0.0, gpus: float = 0.0
) -> ray.data.Dataset:
    """What `work(k)` yields for k = 0 … count-1 (count > 0): each in a Ray task of one CPU, its rows in order.

    `work` is picklable and yields batches of one row (arrays by name, or a pyarrow table), each a block of its own. `cpus`, `gpus`: as in `data_context`.
    """
    import ray.data
    from ray.data import DataContext

    context = data_context(cpus, gpus)
    context.set_config(TIMES, count)
    with DataContext.current(context):
        once = ray.data.range(1, override_num_blocks=1)
        return once.map_batches(_Call(work, MOST_TRIES), batch_size=None, num_cpus=1, zero_copy_batch=True)


@dataclass(frozen=True)
class _Each:
    """The k-th of some numbers to the task done."""

    work: Callable[[int], Any]
    numbers: tuple[int, ...]

    def __call__(self, k: int) -> Iterator[dict[str, Any]]:
        self.work(self.numbers[k])
        yield {"number": np.array([self.numbers[k]])}


def each(work: Callable[[int], Any], numbers: Sequence[int]) -> Iterator[int]:
    """Call `work` (picklable) with each number in Ray tasks of one CPU; yields each number once it is done, in order."""
    if not numbers:
        return
    with clear_errors():
        for row in calls(_Each(work, tuple(numbers)), len(numbers)).iter_rows():
            yield int(row["number"])


@contextmanager
def clear_errors() -> Generator[None]:
    """A UserError raised in a task comes out as itself: its one line, without Ray's account of the way it came."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while isinstance(inner := getattr(cause, "cause", None), BaseException):  # RayTaskError's own
            cause = inner
        if isinstance(cause, UserError) and cause is not error:
            raise UserError(str(cause).split(RETRY_NOTE)[0]) from error
        raise
