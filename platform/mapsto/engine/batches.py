"""Batches of numpy arrays to the training device and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..core.sample import Batch

# Arrays out of the object store are read-only. No loss writes into its batch, and a copy would cost what zero-copy saves.
warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Numeric and bool arrays as tensors on the device, sharing memory on the CPU; anything else stays as it is."""
    return {name: _tensor(value, device) for name, value in batch.items()}


def to_numpy(output: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors as numpy arrays on the CPU; bfloat16 and float16 become float32."""
    return {
        name: (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).detach().cpu().numpy()
        for name, value in output.items()
    }


def valid_rows(batch: Batch) -> np.ndarray:
    """The numpy batch's N bool mask of rows that count."""
    return np.asarray(batch["valid"], bool) if "valid" in batch else np.ones(len(batch["row_id"]), bool)


def _tensor(value: Any, device: torch.device) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor if device.type == "cpu" else tensor.to(device)
