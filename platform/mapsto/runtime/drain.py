"""`python -m mapsto.runtime.drain SECONDS`, on a node that is to end (a pod's preStop): Ray puts nothing more on it, training saves
its state, and the seconds are waited for it. `ray stop` alone kills the workers where they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

WHY = "the machine is about to end"


def drain(client: Any, address: str, seconds: float) -> list[str]:
    """Tell the cluster that the living nodes of this IP address go away in so many seconds; their ids. `client`: Ray's GcsClient."""
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # ty: ignore[missing-module-member]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # ty: ignore[missing-module-member]

    known: Mapping[Any, Any] = client.get_all_node_info()
    found = [
        each.hex()
        for each, info in known.items()
        if info.node_manager_address == address and info.state == GcsNodeInfo.ALIVE
    ]
    deadline = int((time.time() + seconds) * 1000)
    for node in found:
        client.drain_node(node, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), WHY, deadline)
    return found


def main(seconds: float) -> None:
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # ty: ignore[missing-module-member]
    from ray.util import get_node_ip_address

    if drain(GcsClient(address=canonicalize_bootstrap_address_or_die("auto")), get_node_ip_address(), seconds):
        time.sleep(seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]))
