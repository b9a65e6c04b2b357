"""The bare loop that benchmarks/train.py measures against: PyTorch's DistributedDataParallel as its tutorial has it, fed from
memory. `python -m benchmarks._bare_ddp DEVICE RANK WORLD PORT MODEL SIZE BATCH STEPS BLOCK` prints, from rank 0, the images/s of
every block of steps. DEVICE: cpu, or cuda (a rank a GPU, NCCL, compiled, batches through pinned memory)."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

CLASSES = 10


def arrays(rank: int, size: int, rows: int, batches: int = 8) -> list[dict[str, np.ndarray]]:
    """`batches` of `rows` random uint8 images and labels: what both contestants train on."""
    rng = np.random.default_rng(rank)
    return [
        {
            "image": rng.integers(0, 256, (rows, size, size, 3), np.uint8),
            "label": rng.integers(0, CLASSES, rows),
            "row_id": np.arange(rows),
            "valid": np.ones(rows, bool),
        }
        for _ in range(batches)
    ]


def main(argv: list[str]) -> None:
    import timm

    kind, rank, world, port = argv[0], *(int(text) for text in argv[1:4])
    name, size, batch, steps, block = argv[4], *(int(text) for text in argv[5:])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=world)
    model: Any = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    model = DistributedDataParallel(model, broadcast_buffers=False)  # mapsto synchronises buffers once an epoch
    if kind == "cuda":
        model = torch.compile(model)

    def there(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if kind == "cuda" else tensor

    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": decayed}, {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    criterion = nn.CrossEntropyLoss()
    mean = torch.tensor([0.5, 0.5, 0.5], device=device).view(1, 3, 1, 1) * 255
    data, rates, start = arrays(rank, size, batch // world), [], time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        found = data[step % len(data)]
        image = there(found["image"]).permute(0, 3, 1, 2).float().sub(mean).div(mean)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(kind, torch.bfloat16):
            loss = criterion(model(image), there(found["label"]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % block == 0:
            loss.item()
            rates.append(block * batch / (time.perf_counter() - start))
            start = time.perf_counter()
    if rank == 0:
        print(json.dumps(rates))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
