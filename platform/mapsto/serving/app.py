"""The Ray Serve application of one model: `import_path: mapsto.serving.app:build`.

The ingress deployment is the model's replica itself: parsing, decoding, batching, inference and JSON in one process,
so a request makes one hop after the proxy. Decoding and inference run in threads; the event loop only moves bytes.
"""

from __future__ import annotations

import logging
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.registry import load_task
from ..core.storage import Storage
from .options import RETRY_AFTER_S, Options
from .runtimes import open_runtime
from .web import Web


def build(args: dict[str, Any]) -> serve.Application:
    """The application for a Serve configuration's `args` (`Options`). UserError for wrong ones, or no artifact there."""
    options = Options.of(args)
    return application(options, options.storage.open())


def application(options: Options, storage: Storage) -> serve.Application:
    """The same with a storage whose keys may come from a recipe; they travel to the replicas in memory only."""
    artifact = Artifact(options.artifact, storage, options.answers)
    if not artifact.complete():
        raise UserError(
            f"{artifact.uri}: no finished artifact here (artifact.json is missing); serve a train or compress artifact"
        )
    if not artifact.storage.exists(artifact.path("variant.json")):
        raise UserError(
            f"{artifact.uri}: this {artifact.stage} artifact holds no model; serve a train or compress artifact"
        )
    load_task(artifact)  # wrong answers are told here, not by a replica that cannot start
    replicas = options.replicas
    scale: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.max > replicas.min:
        busy = 2 * options.max_batch_size
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.min, max_replicas=replicas.max, target_ongoing_requests=busy
            )
        }
    deployment = Model.options(  # ty: ignore[missing-attribute]  # the decorator makes it a Deployment
        **scale,
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": options.gpus_per_replica},
        max_ongoing_requests=options.max_ongoing,
        max_queued_requests=options.max_queued,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=options.timeout_s,
    )
    return deployment.bind(options, storage)


@serve.deployment
@serve.ingress()
class Model:
    """One replica. Serve asks it for its ASGI application once it stands; a failure here names its cause in the status."""

    def __init__(self, options: Options, storage: Storage) -> None:
        threads = max(1, int(options.cpus_per_replica))
        device = "cuda" if options.gpus_per_replica else "cpu"
        # One line of access log per request costs more than a small model's answer; Serve's metrics count them.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._web = Web(open_runtime(Artifact(options.artifact, storage, options.answers), threads, device), options)

    def __serve_build_asgi_app__(self) -> Any:
        return self._web.app

    def __del__(self) -> None:
        if hasattr(self, "_web"):
            self._web.close()
