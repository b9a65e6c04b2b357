"""What a training run meets on its way, told in one line that says which setting to turn."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

from ..core.errors import UserError


@contextmanager
def deterministic(wanted: bool) -> Generator[None]:
    """Within, torch uses deterministic algorithms only; an operation without one raises UserError."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA's first matrix product
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"train.deterministic: {str(error).splitlines()[0]}; set it to false") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def memory() -> Generator[None]:
    """Within, a device that is out of memory raises UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            "train: the device is out of memory; raise train.accumulate (the same steps, in smaller pieces), set "
            f"train.precision: bf16 or train.gradient_checkpointing: true, or lower train.batch_size ({told})"
        ) from error
