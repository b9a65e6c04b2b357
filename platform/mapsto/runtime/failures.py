"""The person's error inside Ray's wrappers: a task's, a worker group's or a controller's failure carries its cause."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.errors import UserError


def user_error(error: BaseException) -> UserError | None:
    """The UserError that `error` is or was caused by, else None."""
    for each in _causes(error, set()):
        wrapper = getattr(each, "cause", None) is not None  # Ray's of a UserError is one itself, its text a traceback
        if isinstance(each, UserError) and not wrapper:
            return each
    return None


def _causes(error: object, seen: set[int]) -> Iterator[BaseException]:
    if not isinstance(error, BaseException) or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    # RayTaskError.cause, WorkerGroupError.worker_failures, ControllerError.controller_failure
    failures = getattr(error, "worker_failures", None) or {}
    for inner in (
        error.__cause__,
        getattr(error, "cause", None),
        getattr(error, "controller_failure", None),
        *failures.values(),
    ):
        yield from _causes(inner, seen)
