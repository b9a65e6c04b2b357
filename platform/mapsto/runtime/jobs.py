"""A verb of the command line as a Ray job on a cluster elsewhere: submitted, followed, stopped."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Generator

    from ray.job_submission import JobSubmissionClient

PACKAGE = Path(__file__).resolve().parents[1]
EXCLUDES = ["**/__pycache__/**", "**/*.pyc"]
RECIPE = "recipe.yaml"
STOP_WAIT_S = "60"
"""How long a job that is stopped may take to save its training; Ray's own 3 s kill it in the middle of a step."""


def submit(
    verb: str,
    recipe: str,
    arguments: Sequence[str],
    address: str | None,
    *,
    wait: bool = True,
    say: Callable[[str], None] = print,
) -> int:
    """Run `mapsto <verb> <recipe> <arguments>` as a job; returns its exit code (0 at once without `wait`).

    The recipe's text (`recipe`) and this package travel with the job; the environment, and with it the storage's keys,
    is the cluster's. Raises UserError when nothing answers at `address`, the URL of the cluster's dashboard.
    """
    client, url = _client(address)
    with tempfile.TemporaryDirectory(prefix="mapsto-job-") as folder:
        Path(folder, RECIPE).write_text(recipe, encoding="utf-8")
        with _translated(url):
            job = _when_ready(
                lambda: client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "mapsto", verb, RECIPE, *arguments]),
                    runtime_env={
                        "working_dir": folder,
                        "py_modules": [str(PACKAGE)],
                        "excludes": EXCLUDES,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S},
                    },
                    metadata={"mapsto": verb},
                )
            )
    say(f"job {job} submitted to {url}")
    if not wait:
        say(f"follow it with: mapsto job logs {job} --address {url}")
        return 0
    try:
        return follow(job, url)
    except KeyboardInterrupt:
        say(f"job {job} goes on; stop it with: mapsto job stop {job} --address {url}")
        raise


def follow(job: str, address: str | None) -> int:
    """Copy the job's output to ours until it ends; returns its exit code."""
    client, url = _client(address)

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    with _translated(url, job):
        asyncio.run(tail())
        return _exit_code(client, job)


def logs(job: str, address: str | None, *, wait: bool = False) -> int:
    """Print what the job has written so far, or follow it."""
    if wait:
        return follow(job, address)
    client, url = _client(address)
    with _translated(url, job):
        print(client.get_job_logs(job), end="", flush=True)
    return 0


def listing(address: str | None) -> list[str]:
    """A line per job, newest first: id, status, start, command."""
    client, url = _client(address)
    with _translated(url):
        found: list[Any] = list(client.list_jobs())
    jobs = sorted((job for job in found if job.submission_id), key=lambda job: job.start_time or 0, reverse=True)
    return [f"{job.submission_id}  {job.status.value:<9}  {_when(job.start_time)}  {job.entrypoint}" for job in jobs]


def status(job: str, address: str | None) -> str:
    """The job's status in one line, with the reason where it failed."""
    client, url = _client(address)
    with _translated(url, job):
        details: Any = client.get_job_info(job)
    code = "" if details.driver_exit_code is None else f", exit code {details.driver_exit_code}"
    reason = (
        f": {details.message.strip().splitlines()[0]}" if details.message and details.status.value == "FAILED" else ""
    )
    return f"{job} {details.status.value}{code}{reason}"


def stop(job: str, address: str | None) -> str:
    """Ask the job to stop, wait until it has; returns its status line."""
    client, url = _client(address)
    with _translated(url, job):
        client.stop_job(job)
        _wait(client, job)
    return status(job, address)


def _client(address: str | None) -> tuple[JobSubmissionClient, str]:
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ""
    if not url:
        raise UserError("which cluster? give --address http://HEAD:8265, the address of its dashboard")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: jobs go to the dashboard's address, http://HEAD:8265")
    from ray.job_submission import JobSubmissionClient

    with (
        _translated(url),
        _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"),
    ):  # which the client prefers to its argument
        return JobSubmissionClient(url), url


@contextmanager
def _without(*names: str) -> Generator[None]:
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _translated(url: str, job: str | None = None) -> Generator[None]:
    """One clear line for an address that does not answer, a refused token and an unknown job."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"{url}: token refused; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"{url}: no Ray dashboard answers there; is the cluster up, and the address its dashboard's?"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "does not exist" in text or "status code 404" in text:
            raise UserError(
                f"{url}: no job {job}" if job else f"{url}: no Ray dashboard there ({_line(text)})"
            ) from error
        if "status code" in text or "Version mismatch" in text or "connect" in text.lower():
            raise UserError(f"{url}: {_line(text)}") from error
        raise


def _when_ready(action: Callable[[], str], patience_s: float = 60.0) -> str:
    """Try again while a cluster that has just started knows no node to run a job's driver on."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return action()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def _wait(client: JobSubmissionClient, job: str, poll_s: float = 0.3) -> Any:
    while True:
        details: Any = client.get_job_info(job)
        if details.status.is_terminal():
            return details
        time.sleep(poll_s)


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    details = _wait(client, job)
    if details.status.value == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None and details.message:
        print(f"job {job} {details.status.value}: {details.message}", flush=True)
    return details.driver_exit_code or 1


def _when(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000)) if milliseconds else " " * 19


def _line(text: str) -> str:
    return text.strip().splitlines()[0][:300]
