"""Deploying on Ray Serve with an end: it answers, or one line says why it does not."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import Storage
from ..serving.options import Options

ANSWER_S = 60.0
CONSTRUCTOR_REFUSED = "mapsto.core.errors.UserError"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def deploy(options: Options, storage: Storage, host: str, port: int, patience_s: float) -> tuple[str, str]:
    """Deploy, wait until the endpoint answers with this artifact; returns the model's URL and the kind of ingress.

    UserError: the port is taken, Serve runs elsewhere on this cluster, no CPU becomes free within `patience_s`, or the
    replica cannot start.
    """
    import ray
    from ray import serve

    from ..runtime.session import connect
    from ..serving.app import application

    if not ray.is_initialized():
        connect()
    app = f"mapsto-{options.name}"
    target = application(options, storage)
    check_port(host, port)
    serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
    fresh = app not in _details()
    taken = {name: found["route_prefix"] for name, found in _details().items() if name != app}
    prefix = f"/{options.name}" if "/" in taken.values() else "/"
    serve.run_many(
        [serve.RunTarget(target, name=app, route_prefix=prefix)],
        wait_for_applications_running=False, wait_for_ingress_deployment_creation=False,
    )  # fmt: skip
    try:
        _wait_running(app, options, patience_s)
    except UserError:
        if fresh:  # Serve would try for ever; an earlier deployment of that name is left to it
            serve.delete(app, _blocking=False)
        raise
    base = f"http://{EVERYWHERE.get(host, host)}:{port}{prefix.rstrip('/')}"
    _wait_answering(base, options)
    return f"{base}/v1/models/{options.name}", _ingress()


def check_port(host: str, port: int) -> None:
    """UserError when something else listens on the port, or this cluster's Serve already listens on another one."""
    running = _serving_at()
    if running is not None:
        if running[1] != port:
            raise UserError(
                f"serve.port: this cluster's Ray Serve already listens on {running[0]}:{running[1]}, and has one port for all models; "
                f"set serve.port={running[1]}, or stop it first (serve shutdown)"
            )
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"serve.port: {host}:{port} cannot be listened on ({error.strerror}); set serve.port to a free one"
            ) from error


def _client() -> Any:
    """The controller's client, or None: `ray.serve` has no public way to ask for its port and its replicas' processes."""
    import ray

    if not ray.is_initialized():
        return None
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def _serving_at() -> tuple[str, int] | None:
    client = _client()
    return None if client is None else (str(client.http_config.host), int(client.http_config.port))


def _ingress() -> str:
    """`fast` where the cluster's proxies are HAProxy's managers, `python` where they are Ray's own."""
    import ray

    for proxy in _client().get_serve_details()["proxies"].values():
        with suppress(ValueError):  # just being started again
            return "fast" if "HAProxy" in repr(ray.get_actor(proxy["actor_name"], namespace="serve")) else "python"
    return "unknown"


def _applications() -> dict[str, Any]:
    from ray import serve

    return dict(serve.status().applications)


def _details() -> dict[str, Any]:
    """Application name → its route, deployments and replicas, with their processes once they have one."""
    return _client().get_serve_details()["applications"]


def _waiting_for_cpus(app: str) -> bool:
    """Whether a replica of the application has no process yet."""
    deployments = _details().get(app, {}).get("deployments", {})
    return any(not replica.get("pid") for found in deployments.values() for replica in found["replicas"])


def _wait_running(app: str, options: Options, patience_s: float) -> None:
    import ray

    need = options.replicas.min * options.cpus_per_replica
    placed = time.monotonic()
    while True:
        found = _applications()[app]
        if found.status == "RUNNING":
            return
        refused = any(
            CONSTRUCTOR_REFUSED in d.message for d in found.deployments.values()
        )  # Serve itself would try again
        if refused or found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise UserError(f"serve: {options.name} could not be started: {_reason(found)}")
        if not _waiting_for_cpus(app):
            placed = time.monotonic()
        elif time.monotonic() - placed > patience_s:
            free, total = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
            raise UserError(
                f"serve: serve.replicas.min {options.replicas.min} x serve.cpus_per_replica {options.cpus_per_replica:g} = {need:g} CPUs, "
                f"and {free:g} of the cluster's {total:g} are free after {patience_s:g} s; lower one of the two, or stop what holds them"
            )
        time.sleep(0.2)


def _reason(found: Any) -> str:
    """The last line of the traceback that Serve quotes, without its wrapping."""
    text = " ".join([found.message, *(d.message for d in found.deployments.values())])
    lines = [line.strip() for d in found.deployments.values() for line in d.message.splitlines() if "Error" in line]
    return (lines[-1] if lines else " ".join(text.split()))[:400]


def _wait_answering(base: str, options: Options) -> None:
    import requests

    fingerprint, last = Artifact(options.artifact, Storage()).fingerprint, ""
    begun = time.monotonic()
    while time.monotonic() - begun < ANSWER_S:
        try:
            response = requests.get(f"{base}/healthz", timeout=5)
            last = f"{response.status_code} {response.text[:100]}"
            if response.status_code == 200 and response.json().get("fingerprint") == fingerprint:
                return
        except (requests.RequestException, ValueError) as error:
            last = type(error).__name__
        time.sleep(0.2)
    raise UserError(
        f"serve: {base}/healthz does not answer with this model after {ANSWER_S:g} s ({last}); is something else on that port?"
    )
