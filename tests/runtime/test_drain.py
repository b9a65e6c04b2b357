"""A node that is about to end says so."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from ray._raylet import InnerGcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from mapsto.runtime.drain import drain


def test_the_living_node_of_this_address_is_drained() -> None:
    told: list[tuple[Any, ...]] = []
    nodes = {
        b"a": GcsNodeInfo(node_manager_address="10.0.0.1", state=GcsNodeInfo.ALIVE),
        b"b": GcsNodeInfo(node_manager_address="10.0.0.1", state=GcsNodeInfo.DEAD),
        b"c": GcsNodeInfo(node_manager_address="10.0.0.2", state=GcsNodeInfo.ALIVE),
    }
    client = SimpleNamespace(get_all_node_info=lambda: nodes, drain_node=lambda *given: told.append(given))
    before = time.time()
    assert drain(client, "10.0.0.1", 40) == [b"a".hex()]
    ((node, reason, _, deadline),) = told
    assert (node, reason) == ("61", DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"))
    assert 39_000 < deadline - 1000 * before < 41_000
    assert drain(client, "10.0.0.9", 40) == []
    assert all(hasattr(InnerGcsClient, name) for name in ("get_all_node_info", "drain_node"))
