"""The private cluster: loopback only, quiet, its own folder, and errors in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from ray.exceptions import RayTaskError

from mapsto.core.errors import BrokenModel, UserError
from mapsto.runtime import session
from mapsto.runtime.failures import user_error


def test_everything_listens_on_loopback(cluster: str) -> None:
    pids = {process.pid for folder in session._guards for process in session.processes(folder)}
    assert len(pids) > 3
    # Of Ray Serve's fast ingress, where it is up: Ray binds these to all interfaces, whatever it is told (SECURITY.md).
    known = {int(os.environ[f"RAY_SERVE_HAPROXY_{what}_PORT"]) for what in ("METRICS", "STATS")}
    open_to_all = [
        (c.laddr.ip, c.laddr.port, psutil.Process(c.pid).name())
        for c in psutil.net_connections("inet")
        if c.pid in pids
        and c.status == psutil.CONN_LISTEN
        and c.laddr.port not in known
        and not c.laddr.ip.removeprefix("::ffff:").startswith("127.")
    ]
    assert not open_to_all
    mine = {c.laddr.port for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN}
    assert 52365 not in mine, (
        "the agent's fixed port is the first cluster's of the machine: the next one could run no jobs"
    )


def test_a_stale_cluster_file_cannot_mislead(cluster: str) -> None:
    """What Tune's cleaner and a job's supervisor go by names this cluster."""
    folder = os.environ["RAY_TMPDIR"]
    assert Path(folder, "ray_current_cluster").read_text() == cluster == os.environ["RAY_ADDRESS"]


def test_connecting_again_gives_the_same_session(cluster: str) -> None:
    with session.connected() as inner:
        assert inner.address == cluster
    assert session.connect().address == cluster, "a block that did not start it leaves it"


def test_workers_have_the_storage_keys_and_the_package(cluster: str, s3) -> None:
    import ray

    @ray.remote(num_cpus=0.5)
    def look() -> tuple[str | None, str]:
        import mapsto

        return os.environ.get("AWS_ENDPOINT_URL"), str(mapsto.__file__)

    endpoint, module = ray.get(look.remote())
    assert endpoint == s3.endpoint
    assert "mapsto" in module


def test_ray_data_is_quiet(cluster: str) -> None:
    program = (
        "from mapsto.runtime import session\n"
        "session.connect()\nimport ray.data\n"
        "print(ray.data.range(8).map_batches(lambda b: b).count())\nsession.disconnect()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("8\n", "")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "use `mapsto submit`"),
        ("127.0.0.1:9", "127.0.0.1:9: no Ray cluster to be reached there"),
    ],
)
def test_wrong_address(address: str, message: str) -> None:
    program = f"from mapsto.runtime import session\nsession.connect({address!r})"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert message in done.stderr.strip().splitlines()[-1]


def test_a_server_that_is_no_ray_is_refused_at_once() -> None:
    """Ray itself asks it for a quarter of an hour."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"something listens there that is no Ray cluster; its port is 6379"):
            session._probe(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_cluster_on_loopback_is_found_where_the_address_says(cluster: str) -> None:
    """Ray on its own asks at the machine's outward address instead, where nobody listens."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ENABLE")}
    program = (
        "from mapsto.runtime import session\nprint(session.connect().private)\nimport ray\n"
        "print(ray.get_runtime_context().gcs_address)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert done.stdout.split() == ["False", os.environ["RAY_ADDRESS"]], done.stderr


def test_a_private_cluster_without_the_dashboard() -> None:
    """In a process of its own: ten processes fewer, and tasks run."""
    program = (
        "import psutil, ray\nfrom mapsto.runtime import session\n"
        "with session.connected(num_cpus=1, dashboard=False) as here:\n"
        "    print(here.private, here.dashboard, ray.get(ray.remote(lambda: 7).remote()))\n"
        "    print(session.only_machine())\n"
        "    lines = [' '.join(p.cmdline()) for p in psutil.Process().children(recursive=True)]\n"
        "    print(sum('ray-dashboard' in line or 'log_monitor' in line for line in lines))\n"
        "print(len(psutil.Process().children()))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=180, env=environment
    )
    assert done.stdout.splitlines() == ["True None 7", "True", "0", "0"], done.stderr


def test_the_user_s_error_is_found_inside_wrappers() -> None:
    told = UserError("one line")

    class WorkerGroupError(Exception):
        def __init__(self, worker_failures: dict[int, Exception]) -> None:
            self.worker_failures = worker_failures

    outer = RuntimeError("training failed")
    outer.__cause__ = WorkerGroupError({1: RuntimeError("x"), 0: told})
    assert user_error(outer) is told
    assert user_error(ValueError("a bug")) is None
    broken = BrokenModel("the model's logits are not finite")
    assert user_error(broken) is broken
    wrapped = RayTaskError("evaluate", "a traceback", broken).as_instanceof_cause()
    assert isinstance(wrapped, UserError) and user_error(wrapped) is broken
