"""The loop that benchmarks/detection.py measures against: what torchvision's reference script for detection does
(references/detection: train.py, engine.py, transforms.py), over the same model. `python -m benchmarks._bare_detection RANK WORLD
PORT FOLDER SIZE BATCH EPOCHS` prints, from rank 0, the images/s of every epoch, by the clock."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

CLASSES = 8
BACKBONE, CHANNELS, ANCHOR, PROPOSALS, HIDDEN = "resnet10t", 64, 16, 100, 128


class Boxes(Dataset):
    """The manifest's training rows, as CocoDetection behind wrap_dataset_for_transforms_v2 gives them."""

    def __init__(self, folder: Path) -> None:
        lines = [json.loads(text) for text in (folder / "manifest.jsonl").read_text().splitlines()]
        self.folder, self.rows = folder, [line for line in lines if line["split"] == "train"]
        self.names = sorted({name for row in lines for name in row["box_labels"]})
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.ToDtype(torch.float32, scale=True),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        image = decode_image(str(self.folder / row["image"]), ImageReadMode.RGB)
        boxes = tv_tensors.BoundingBoxes(row["boxes"], format="XYXY", canvas_size=image.shape[-2:])  # ty: ignore[no-matching-overload]
        labels = torch.tensor([1 + self.names.index(name) for name in row["box_labels"]])
        return self.transform(tv_tensors.Image(image), {"boxes": boxes, "labels": labels})


def model(size: int) -> Any:
    """torchvision's FasterRCNN over the pyramid that mapsto's has, with torchvision's own resizing."""
    from mapsto.models.fasterrcnn import FasterRcnn
    from mapsto.models.pyramid import Maps

    net: Any = FasterRcnn(
        CLASSES, Maps(BACKBONE, (4, 8, 16, 32), False), channels=CHANNELS, anchor=ANCHOR, proposals=PROPOSALS, hidden=HIDDEN,
        least=0.05, nms_iou=0.5, most=100,
    ).net  # fmt: skip
    net.transform = GeneralizedRCNNTransform(size, size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return net


def main(argv: list[str]) -> None:
    rank, world, port = (int(text) for text in argv[:3])
    folder, size, batch, epochs = Path(argv[3]), *(int(text) for text in argv[4:])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    net = DistributedDataParallel(model(size))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.02, 0.9, weight_decay=1e-4)
    data = Boxes(folder)
    sampler = DistributedSampler(data)
    batches = BatchSampler(sampler, batch // world, drop_last=True)
    loader = DataLoader(
        data, batch_sampler=batches, num_workers=1, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    rates = []
    for epoch in range(epochs):
        start, seen = time.perf_counter(), 0
        sampler.set_epoch(epoch)
        net.train()
        for images, targets in loader:
            losses = net(list(images), list(targets))
            total = sum(losses.values())
            logged = torch.stack([losses[name].detach() for name in sorted(losses)])
            dist.all_reduce(logged)
            if not torch.isfinite(logged.sum() / world):
                raise SystemExit(f"loss is {logged}")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            seen += len(images) * world
        rates.append(seen / (time.perf_counter() - start))
    if rank == 0:
        print(json.dumps(rates))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
