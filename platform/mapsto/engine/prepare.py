"""What is done to a model before it is trained: memory layout, checkpointed activations, batch norm over the workers,
compilation. Parameter names stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import heavy
from ..core.errors import UserError
from .world import World

if TYPE_CHECKING:
    from ..config.training import TrainConfig

CALL = "_compiled_call_impl"
"""Where nn.Module.compile puts what a call of the module then runs."""
APART = {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
"""Each part has its own 8 variants: all modules' calls are one code object, whose variants torch counts together. Older
torch (2.13) cannot."""


def prepared(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """The model on the world's device as the recipe asks. Raises UserError where model or device cannot."""
    if config.sync_norm and world.device.type != "cuda":
        raise UserError(
            "train.sync_norm: torch's SyncBatchNorm needs GPUs, and the workers have none; set train.gpus_per_worker, or "
            "leave it out"
        )
    model = model.to(world.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    if config.sync_norm and world.size > 1:
        # timm's own: torch's takes the activation out of the norms that have one (EfficientNet, ResNetV2, DenseNet)
        model = heavy.timm().layers.convert_sync_batchnorm(model)
    if config.compile:
        compile_called(model)
    return model


def compile_called(model: nn.Module) -> None:
    """Compile what is called, each at its first call: the model as a whole where its forward is used, else the parts that a
    loss reaches for (a GAN's two nets, a diffusion model's U-Net, a detector's backbone and heads)."""
    waiting = set(model.modules())

    def compiled(module: nn.Module) -> Callable[..., Any]:
        def first(*args: Any, **kwargs: Any) -> Any:
            for inner in waiting.intersection(module.modules()):
                setattr(inner, CALL, None)
            waiting.difference_update(module.modules())
            module.compile(**APART)
            return module(*args, **kwargs)

        return first

    for module in waiting:
        setattr(module, CALL, compiled(module))


def checkpoint_gradients(model: nn.Module) -> None:
    """Turn on timm's activation checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv
    1604.06174) in every part that has it. Raises UserError where there is none."""
    able = [module for module in model.modules() if hasattr(module, "set_grad_checkpointing")]
    try:
        if not able:
            raise ValueError("it has no set_grad_checkpointing")
        for module in able:
            module.set_grad_checkpointing(True)  # ty: ignore[not-callable]
    except (AssertionError, ValueError) as error:
        raise UserError(
            f"train.gradient_checkpointing: not possible for this model ({error}); many of timm's have it, such as resnet50 "
            "and vit_small_patch16_224"
        ) from error


@contextmanager
def seen_already(norms: Iterable[_BatchNorm]) -> Generator[None]:
    """Within, batch norms normalise as ever and leave their running statistics alone: activations that are computed again would
    otherwise move them twice a step."""
    held = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, counted in held:  # SyncBatchNorm wants a count; a copy of it may go on
        norm.momentum, norm.num_batches_tracked = 0.0, counted.clone() if counted is not None else None
    try:
        yield
    finally:
        for norm, momentum, counted in held:
            norm.momentum, norm.num_batches_tracked = momentum, counted
