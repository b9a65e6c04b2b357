"""Stochastic weight averaging (Izmailov et al., arXiv 1803.05407): the equal mean of the weights after several epochs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.sample import Batch
from .batches import to_device, valid_rows
from .phases import Autocast, synchronise_buffers
from .world import World

if TYPE_CHECKING:
    from ..config.training import SwaConfig
    from ..core.task import Task


class Swa:
    """Averages the parameters; the buffers are the model's own, but for batch norm's statistics, which `measure` takes
    anew under the mean weights."""

    def __init__(self, model: nn.Module, config: SwaConfig) -> None:
        self.config, self.count = config, 0
        self.tensors = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.recent: deque[Batch] = deque()
        self.norms: dict[str, torch.Tensor] | None = None
        """The model's buffers as `measure` left them under the present mean; None: not measured since."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.count += 1
        self.norms = None
        own = [value.detach() for value in model.parameters()]
        torch._foreach_lerp_(list(self.tensors.values()), own, 1 / self.count)

    def keep(self, batch: Batch) -> None:
        """Remember a training microbatch, the newest `rows` rows of them, out of shared memory."""
        kept = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}
        self.recent.append(kept)
        while sum(len(valid_rows(b)) for b in self.recent) - len(valid_rows(self.recent[0])) >= self.config.rows:
            self.recent.popleft()

    @torch.no_grad()
    def measure(
        self, task: Task, model: nn.Module, world: World, autocast: Autocast, frozen: Iterable[nn.Module]
    ) -> None:
        """Batch norm's statistics as the mean over the remembered batches (as torch.optim.swa_utils.update_bn), and over
        the ranks; a norm that is frozen or that the task's forward does not reach keeps its own."""
        still = set(frozen)
        norms = [
            m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None and m not in still
        ]
        before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
        momenta = [norm.momentum for norm in norms]
        batches = [batch for batch in self.recent if valid_rows(batch).sum() > 1] if norms else []
        if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):  # whose forward passes all ranks take together
            fewest = world.broadcast_object(min(world.gather_objects(len(batches)), default=0))
            batches = batches[len(batches) - fewest :]
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        for batch in batches:
            with autocast():
                task.forward(model, to_device(batch, world.device))
        for norm, own, momentum in zip(norms, before, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            seen = int(norm.num_batches_tracked) if norm.num_batches_tracked is not None else 0
            if not seen:
                for name, value in norm.named_buffers():
                    value.copy_(own[name])
        synchronise_buffers([value for norm in norms for value in norm.buffers()], world)

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[None]:
        """Within, the model has the mean weights; after it, its own weights and buffers again, to the bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        try:
            self.copy_to(model)
            yield
        finally:
            model.load_state_dict(own)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            value.copy_(self.tensors[name])

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "tensors": self.tensors, "norms": self.norms}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count, self.norms = state["count"], state["norms"]
        for name, value in self.tensors.items():
            value.copy_(state["tensors"][name])
