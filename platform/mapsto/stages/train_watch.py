"""What the driver hears of a Ray Train run: each epoch's record as it comes, and the error that matters.

Ray Train's controller runs on the driver's node, so a local file carries the records: no actor, no port.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from ..core.errors import UserError
from ..runtime.failures import user_error

BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What would come back on a retry. Anything else may be a lost worker, or what its neighbours see of it."""


NO_ROOM = ("WorkerGroupStartupTimeoutError",)
HINT = "; a smaller train.batch_size or more train.accumulate needs less memory"


class Watch(UserCallback):
    """Lives in the controller: appends records to the file, and ends the run on an error that no retry would mend.

    An exception out of a callback ends a Ray Train run at once, whatever `max_failures`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if Path(self.path).with_name("stop").exists():
            raise UserError("train: stopped")
        for note in metrics[0]["notes"]:
            self._append({"note": note})
        if metrics[0]["record"] is not None:
            self._append({"record": metrics[0]["record"]})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            found = user_error(error)
            if found is not None:
                raise found
        for error in worker_exceptions.values():
            if isinstance(error, BUGS):
                raise error
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        reasons = sorted({_reason(error) for error in worker_exceptions.values()})
        hint = HINT if any("memory" in reason.lower() for reason in reasons) else ""
        self._append({"lost": f"worker {ranks} lost ({'; '.join(reasons)}{hint})"})

    def _append(self, line: dict[str, Any]) -> None:
        with Path(self.path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def follow(run: Callable[[], Any], path: Path) -> Iterator[dict[str, Any]]:
    """Run `run` in a thread and yield what Watch writes meanwhile; raises what `run` raises, a UserError within it
    first. Left early, it asks the run to stop at its next report."""
    failure: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=target, name="mapsto-train", daemon=True)
    thread.start()
    read = 0
    try:
        while True:
            alive = thread.is_alive()
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            for line in lines[read:]:
                if line.endswith("\n"):
                    read += 1
                    yield json.loads(line)
            if not alive:
                break
            thread.join(0.2)
    finally:
        if thread.is_alive():
            path.with_name("stop").touch()
    if failure:
        raise cause(failure[0])


def cause(error: BaseException) -> BaseException:
    """What to raise of a failed run: the UserError in it, or the bug that the controller was ended with."""
    found = getattr(error, "controller_failure", None) or error
    if type(found).__name__ in NO_ROOM:
        return UserError(
            "train: the cluster had no room for its workers, in several attempts; `ray status` shows what "
            "it has. Lower train.workers (with train.most_workers for what may come), or run the same command again once machines are back",
            outside=True,
        )
    return user_error(error) or found


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
