"""Which of the recipe's precisions a device has."""

from __future__ import annotations

import torch


def emulated(precision: str, device: torch.device) -> bool:
    """Whether bf16 would only be imitated: by a CPU without AVX-512, AMX or their like oneDNN takes ten times as long with it
    as with fp32 (a convolution of 64 channels, forward and backward, on an AMD EPYC with AVX2)."""
    if precision != "bf16" or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
