"""What benchmarks/scripts.py measures against: timm's training script and torchvision's reference for classification, each
written after it from its own library's parts, for two processes on CPUs. `python -m benchmarks._bare_scripts KIND RANK WORLD
PORT FOLDER MODEL SIZE BATCH EPOCHS` prints, from rank 0, the images/s of every epoch, by the clock."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

SCALE = (0.35, 1.0)
MEAN = STD = (0.5, 0.5, 0.5)


def timm_loader(folder: str, size: int, rows: int) -> tuple[Any, Any]:
    """`create_dataset` and `create_loader` as train.py calls them; a worker for each process, and no prefetcher, which is CUDA's."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=folder)
    loader = create_loader(
        dataset, (3, size, size), rows, is_training=True, use_prefetcher=False, scale=SCALE, hflip=0.5, color_jitter=None,
        interpolation="bilinear", mean=MEAN, std=STD, num_workers=1, distributed=True, persistent_workers=True,
    )  # fmt: skip
    return loader, loader.sampler


def torchvision_loader(folder: str, size: int, rows: int) -> tuple[Any, Any]:
    """references/classification's preset for training (PIL backend), its sampler and DataLoader; a worker for each process."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    preset = transforms.Compose([
        transforms.RandomResizedCrop(size, SCALE, interpolation=transforms.InterpolationMode.BILINEAR, antialias=True),
        transforms.RandomHorizontalFlip(0.5),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    dataset = ImageFolder(folder, preset)
    sampler = DistributedSampler(dataset)
    return DataLoader(dataset, rows, sampler=sampler, num_workers=1, drop_last=True, persistent_workers=True), sampler


def main(argv: list[str]) -> None:
    import timm
    from timm.optim import create_optimizer_v2

    kind, rank, world, port, folder, name = argv[0], int(argv[1]), int(argv[2]), argv[3], argv[4], argv[5]
    size, batch, epochs = (int(text) for text in argv[6:])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    loader, sampler = {"timm": timm_loader, "torchvision": torchvision_loader}[kind](folder, size, batch // world)
    channels_last = kind == "timm"  # its --channels-last; torchvision's script has no such argument
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = timm.create_model(name, num_classes=len(os.listdir(folder))).to(memory_format=layout)
    model = DistributedDataParallel(
        model, broadcast_buffers=kind == "torchvision"
    )  # timm's --dist-bn reduce: once an epoch
    if kind == "timm":
        optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    criterion = nn.CrossEntropyLoss()
    rates, start = [], time.perf_counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        model.train()
        done = 0
        for image, target in loader:
            image = image.to(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16):
                output = model(image)
                loss = criterion(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += len(target) * world
            if kind == "torchvision":  # it logs both at every step
                loss.item(), (output.argmax(1) == target).float().mean().item()
        loss.item()
        rates.append(done / (time.perf_counter() - start))
        start = time.perf_counter()
    if rank == 0:
        print(json.dumps(rates))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
