"""What is done to a model before it is trained: memory layout, checkpointed activations, batch norm over the workers,
compilation. Parameter names stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.errors import UserError
from .world import World

if TYPE_CHECKING:
    from ..config.training import TrainConfig


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
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.compile:
        model.compile()
    return model


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
