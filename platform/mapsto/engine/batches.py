"""Batches of numpy arrays to the training device and back.

Pinned memory pays only where the copy out of it runs beside something else: pinning is a copy of its own, and by PyTorch's
"A guide on good usage of non_blocking and pin_memory()" twice as slow as a plain `to` where one waits for both. So a batch
is `Staged` while the GPU computes on the one before, and all else is copied plainly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..core.sample import Batch

# Arrays out of the object store are read-only. No loss writes into its batch, and a copy would cost what zero-copy saves.
warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)


class Staged(dict[str, Any]):
    """A numpy batch, whose tensors are on their way to a GPU: out of pinned memory, on a stream of their own.

    Written by PyTorch's CUDA semantics and the notes of `Tensor.record_stream`; not run on a GPU yet. The tests fake the streams.
    """

    def __init__(self, batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> None:
        super().__init__(batch)
        self.device, self.stream = device, stream
        with torch.cuda.stream(stream):
            self.copies = _moved(batch, lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def tensors(self) -> Batch:
        """The batch on the device. The current stream waits for it, the host does not; its memory is not used again before
        what that stream was asked until the batch is let go."""
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for value in self.copies.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
        return self.copies


class Stager:
    """Brings batches to a GPU while it computes, and knows how long it had nothing to compute meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def staged(self, batch: Batch) -> Staged:
        return batch if isinstance(batch, Staged) else Staged(batch, self.device, self.stream)

    def mark(self) -> torch.cuda.Event:
        """Asks the device to note the time once it has done what it was asked so far. Between two marks, with nothing asked in
        between, lie the seconds/1000 (`elapsed_time`) that it was idle, once both have been reached."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def stager(device: torch.device) -> Stager | None:
    """What stages batches, for a GPU; None for other devices, which share the host's memory or gain nothing."""
    return Stager(device) if device.type == "cuda" else None


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Numeric and bool arrays as tensors on the device, sharing memory on the CPU; anything else stays as it is."""
    return batch.tensors() if isinstance(batch, Staged) else _moved(batch, lambda tensor: tensor.to(device))


def to_numpy(output: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors as numpy arrays on the CPU; bfloat16 and float16 become float32."""
    return {
        name: (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).detach().cpu().numpy()
        for name, value in output.items()
    }


def valid_rows(batch: Batch) -> np.ndarray:
    """The numpy batch's N bool mask of rows that count."""
    return np.asarray(batch["valid"], bool) if "valid" in batch else np.ones(len(batch["row_id"]), bool)


def _moved(batch: Batch, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    def moved(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            return value
        return move(torch.from_numpy(np.ascontiguousarray(value)))

    return {name: moved(value) for name, value in batch.items()}
