"""Ray Train with workers that come and go, which leave a CPU to the data, and without an actor for data sets that it has none of."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer

from ..runtime.packing import Node, most_workers


class Leaving(ElasticScalingPolicy):
    """Ray's own takes as many workers as the nodes have CPUs for: where they take the last one, they wait for their data for
    ever, and nothing says so. What is asked of an autoscaler stays the recipe's most. It reckons with all that the nodes have: what
    is free just now does not tell which of it this run's own data tasks hold."""

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        worker = self.scaling_config._resources_per_worker_not_none
        found = super()._count_possible_workers(reserved_resources)
        return most_workers(self.nodes(), found, worker.get("CPU", 0.0), worker.get("GPU", 0.0))

    def nodes(self) -> list[Node]:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class Unset(DatasetsCallback):
    """Ray's brings the driver's DataContext to the workers, and starts an actor that hands out the trainer's data sets: ours has
    none, for the workers read by the plan."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class Trainer(TorchTrainer):
    """Ray's, with that policy where the number of workers is a range, and without that actor."""

    def _create_default_callbacks(self) -> list[Any]:
        none = Unset(train_run_context=self.train_run_context, datasets={})
        return [none if type(each) is DatasetsCallback else each for each in super()._create_default_callbacks()]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        config: Any = self.scaling_config
        if config.elasticity_enabled:
            options["scaling_policy"] = Leaving(config)
        return super()._initialize_and_run_controller(**options)
