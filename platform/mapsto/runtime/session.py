"""One connection to Ray: a given cluster, a running job's own, or a private one that ends with this process."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..core.errors import UserError
from . import leftovers

log = logging.getLogger("mapsto.session")
START_TRIES = 3
NOISY = ("ray", "ray.data", "ray.train", "ray.tune")
RELEVELLED = ("ray.serve",)  # sets its own level once it is imported
SILENT = ("ray.data._internal.progress",)  # warns of each bar that was switched off
LOOPBACK = "127.0.0.1"
AS_WRITTEN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for it; 0 keeps it, on Linux too, from asking at the machine's outward address when told 127.0.0.1."""

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""A client's first bytes in HTTP/2, which gRPC is on, and its empty SETTINGS frame (RFC 9113, 3.4 and 6.5)."""
SETTINGS = b"\x04"


@dataclass(frozen=True)
class Session:
    address: str
    """Of the cluster's GCS, host:port."""
    dashboard: str | None
    """URL; where jobs are submitted to, too. None where the cluster has none."""
    private: bool
    """Started by this process, and ended by `disconnect`."""


_session: Session | None = None
_guards: dict[str, subprocess.Popen[bytes]] = {}
"""By the folder of the private cluster that each watches."""
_restore: dict[str, str | None] = {}


def connect(
    address: str | None = None, num_cpus: int | None = None, *, verbose: bool = False, dashboard: bool = True
) -> Session:
    """Connect once; later calls return the same session.

    `address`: host:port of a cluster (or `auto`); default: RAY_ADDRESS, which a Ray job has, else a private cluster on
    loopback with `num_cpus` CPUs (default: the machine's), and with Ray's dashboard where `dashboard` says so: its ten processes
    take a part of a small machine, and sweeps of several workers need it. Raises UserError when no cluster answers.
    """
    global _session
    if _session is not None:
        return _session
    address = address or os.environ.get("RAY_ADDRESS")
    _defaults(verbose)
    handler = signal.getsignal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    try:
        _session = _join(address, verbose) if address else _start(num_cpus, verbose, dashboard)
        _hush(verbose)
    except BaseException:
        disconnect()
        raise
    finally:
        if handler is not None:  # Ray's own ends the process in the middle of what it does
            signal.signal(signal.SIGTERM, handler)
    return _session


@contextmanager
def connected(
    address: str | None = None, num_cpus: int | None = None, *, verbose: bool = False, dashboard: bool = True
) -> Generator[Session]:
    """A session for the block: one that is there already is used and left, a new one is ended."""
    ours = _session is None
    try:
        yield connect(address, num_cpus, verbose=verbose, dashboard=dashboard)
    finally:
        if ours:
            disconnect()


def disconnect() -> None:
    """Leave the cluster; a private one is ended with all of its processes and files."""
    global _session
    import ray

    started = [process for folder in _guards for process in processes(folder)]
    ray.shutdown()
    _, left = psutil.wait_procs(started, timeout=5)  # they end by themselves once their parent has gone
    orphans = [each for folder in _guards for each in leftovers.belonging(folder) if _orphan(each)]
    leftovers.end([*left, *orphans], signal.SIGKILL)
    _session = None
    for name, value in _restore.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _restore.clear()
    while _guards:
        folder, guard = _guards.popitem()
        shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed is a few log files in /tmp
        guard.communicate()


def only_machine() -> bool:
    """Whether this process's cluster is a private one of this machine alone, which ends with it."""
    import ray

    return _session is not None and _session.private and sum(node["Alive"] for node in ray.nodes()) == 1


def scratch() -> str | None:
    """Where temporary folders go that outlive a moment: into the private cluster's own, which is removed whatever ends this
    process (a trial's, too, in one of that cluster's own); None, for the system's, where there is none."""
    folder = next(iter(_guards), None) or os.environ.get("RAY_TMPDIR", "")
    return folder if Path(folder or "/nowhere").is_dir() else None


def private_environment(folder: str) -> dict[str, str]:
    """Environment of a cluster whose files, ports and proxy are its own; set before `ray.init`.

    RAY_ADDRESS is what Tune's cleaner goes by; without it, it may clean another cluster.
    """
    (gcs,) = _free_ports(1)
    return {
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),  # a job's `python`
        "RAY_ADDRESS": f"{LOOPBACK}:{gcs}",
        "RAY_GCS_SERVER_PORT": str(gcs),
        "RAY_TMPDIR": folder,
        **{name: os.environ.get(name, value) for name, value in early_environment(folder).items()},
    }


def early_environment(folder: str) -> dict[str, str]:
    """The part that has to be set before Ray, or Ray Serve, is imported: loopback for every process, and the fast ingress.

    Unless told otherwise, the proxy's configuration and sockets lie in one folder for all clusters of a machine, and its
    statistics are on fixed ports.
    """
    metrics, statistics = _free_ports(2)
    proxy = f"{folder}/proxy"
    return {
        AS_WRITTEN: "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{proxy}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{proxy}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": proxy,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{proxy}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
    }


def _defaults(verbose: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    if not verbose:
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")


def _start(num_cpus: int | None, verbose: bool, dashboard: bool) -> Session:
    # Other users of this machine reach loopback, too. Ray reads the token once, when it is imported.
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        _export({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    for attempt in range(START_TRIES):
        folder = _new_folder()
        _export(private_environment(folder))
        import ray

        try:
            with _own_agent_port(logs=verbose):
                context = ray.init(
                    address="local", num_cpus=num_cpus, include_dashboard=dashboard, dashboard_host=LOOPBACK,
                    dashboard_port=_free_ports(1)[0], log_to_driver=verbose, logging_level=_level(verbose), _temp_dir=folder,
                    _node_ip_address=LOOPBACK,
                )  # fmt: skip
        except Exception as error:
            if not any(sign in str(error) for sign in ("timed out during startup", "dashboard.log")):
                raise
            log.warning(
                "Ray did not start in 30 s on this busy machine; that was try %d of %d", attempt + 1, START_TRIES
            )
            leftovers.end(processes(folder), signal.SIGKILL)
            continue
        # What a job's supervisor and Tune's cleaner read; without it they guess among the machine's clusters.
        Path(folder, "ray_current_cluster").write_text(os.environ["RAY_ADDRESS"])
        url = context.dashboard_url if dashboard else None
        return Session(os.environ["RAY_ADDRESS"], f"http://{url}" if url else None, True)
    raise UserError(f"Ray did not start in {START_TRIES} x 30 s: this machine is too busy, or has too little memory")


@contextmanager
def _own_agent_port(*, logs: bool) -> Generator[None]:
    """`ray.init`, unlike `ray start`, always takes 52365 for its dashboard's agent: of two clusters on a machine, the
    second one says nothing and runs no jobs ("No available agent"). `logs`: whether the process runs that brings the workers'
    output to this one."""
    from ray._private.parameter import RayParams

    plain = RayParams.__init__

    def with_port(self: RayParams, *args: Any, **options: Any) -> None:
        own = {"dashboard_agent_listen_port": _free_ports(1)[0], "include_log_monitor": logs}
        plain(self, *args, **{**own, **options})

    RayParams.__init__ = with_port
    try:
        yield
    finally:
        RayParams.__init__ = plain


def _orphan(process: psutil.Process) -> bool:
    """Whether its parent has gone: Serve's proxy, begun anew after the others were counted. A guard is none: it is a child of this process."""
    try:
        return process.ppid() in (0, 1)
    except psutil.NoSuchProcess:
        return False


def _new_folder() -> str:
    # Short: the path of a unix socket below it may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="mapsto-", dir="/tmp")
    _guards[folder] = leftovers.guard(folder)
    return folder


def _export(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        _restore.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def processes(folder: str) -> list[psutil.Process]:
    """This process's children that belong to the cluster with that folder, with all of theirs; without its guard."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.pid != _guards[folder].pid and any(folder in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _join(address: str, verbose: bool) -> Session:
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address}: this is a dashboard's address, where jobs go: use `mapsto submit`, or give host:port (6379)"
        )
    _probe(address)
    here = address.rsplit(":", 1)[0] in (LOOPBACK, "localhost")
    if here:
        _export({AS_WRITTEN: "0"})
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # of some 40 s each; Ray's own 20 are a quarter of an hour
    import ray
    from ray.exceptions import RayError

    elsewhere = address != "auto" and not here
    package = {"py_modules": [str(Path(__file__).resolve().parents[1])]} if elsewhere and not _in_job() else None
    try:
        context = ray.init(address=address, log_to_driver=verbose, logging_level=_level(verbose), runtime_env=package)
    except (ConnectionError, ValueError, RuntimeError, RayError, TimeoutError) as error:
        line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{address}: no Ray cluster to be reached there ({line})") from error
    url = getattr(context, "dashboard_url", None)
    return Session(address, f"http://{url}" if url else None, False)


def _level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.WARNING


def _probe(address: str) -> None:
    """Refuse at once where nobody listens, or something that is no Ray: Ray itself tries for many minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # `auto`; Ray says what it does not understand
    try:
        with socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), timeout=5) as there:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            there.sendall(GREETING)
            frame = there.recv(9)
    except OSError as error:
        raise UserError(f"{address}: no Ray cluster to be reached there ({error.strerror or error})") from error
    if frame[3:4] != SETTINGS:
        raise UserError(
            f"{address}: something listens there that is no Ray cluster; its port is 6379 unless `ray start --port` said another"
        )


def _in_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _hush(verbose: bool) -> None:
    """Only warnings from Ray's own loggers, and no bars of its own."""
    if verbose:
        return
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in RELEVELLED:
        logging.getLogger(name).addFilter(_warning)
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)


def _warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now; below the range that outgoing connections are drawn from is not asked for."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
