"""The loader's peers, each as its documentation has it. Run by a Python that has them; knows nothing of mapsto.

`python _loader_peers.py NAME FOLDER`: photographs in FOLDER/s3/images/<class>/; prints {"images_per_s": ...}. NAME is of
PEERS, or `prepare-` and such a name: writes the peer's own format. Environment: SECONDS per measurement.
Each makes what mapsto makes: random-resized-crop to 224 pixels, flip, uint8 batches of 64, in two workers, and begins
with an epoch of warming up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = float(os.environ.get("SECONDS", "60"))
SIZE, BATCH, WORKERS = 224, 64, 2
SHARD_BYTES = 32 * 2**20


def files_of(folder: Path) -> list[tuple[str, int]]:
    """(path, class number) of every photograph."""
    root = folder / "s3" / "images"
    classes = sorted(p.name for p in root.iterdir())
    return [(str(p), classes.index(p.parent.name)) for p in sorted(root.rglob("*.jpg"))]


def rate(epoch: Callable[[], Iterator[int]]) -> dict[str, float]:
    """Images per second after one epoch of warming up, over whole passes and the beginning of the last."""
    for _ in epoch():
        pass
    images, start = 0, time.perf_counter()
    while True:
        for count in epoch():
            images += count
            if (taken := time.perf_counter() - start) >= SECONDS:
                return {"images_per_s": images / taken}


def transforms() -> Any:
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])


def pixels(data: bytes) -> Any:
    """C×H×W uint8 tensor."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def one_thread(_: int) -> None:
    import torch

    torch.set_num_threads(1)


def torch_loader(folder: Path) -> dict[str, float]:
    """torch's DataLoader as torchvision's references have it: files, decode_image, v2 transforms on uint8."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision.io import ImageReadMode, decode_image

    class Files(Dataset):
        def __init__(self) -> None:
            self.files, self.transform = files_of(folder), transforms()

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            path, label = self.files[index]
            return self.transform(decode_image(path, ImageReadMode.RGB)), label

    loader = DataLoader(
        Files(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, worker_init_fn=one_thread
    )
    return rate(lambda: (len(x) for x, _ in loader))


def prepare_webdataset(folder: Path) -> dict[str, float]:
    import webdataset as wds

    (folder / "wds").mkdir()
    with wds.ShardWriter(str(folder / "wds" / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as sink:
        for number, (path, label) in enumerate(files_of(folder)):
            sink.write({"__key__": f"{number:06d}", "jpg": Path(path).read_bytes(), "cls": label})
    return {}


def webdataset(folder: Path) -> dict[str, float]:
    """WebDataset: tar shards, shuffled by shard and through a buffer, decoded and batched in WebLoader's workers."""
    import webdataset as wds

    transform = transforms()
    dataset = (
        wds.WebDataset([str(p) for p in sorted((folder / "wds").glob("*.tar"))], shardshuffle=100)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(lambda data: transform(pixels(data)), int)
        .batched(BATCH)
    )
    loader = wds.WebLoader(
        dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True, worker_init_fn=one_thread
    )
    return rate(lambda: (len(x) for x, _ in loader))


def _lit(item: tuple[str, int]) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(item[0]), "label": item[1]}  # a JPEG file stays as it is


def prepare_litdata(folder: Path) -> dict[str, float]:
    import litdata

    litdata.optimize(
        fn=_lit, inputs=files_of(folder), output_dir=str(folder / "lit"), chunk_bytes=SHARD_BYTES, num_workers=1
    )
    return {}


def litdata(folder: Path) -> dict[str, float]:
    """LitData: an optimized data set (JPEGs as they are; it decodes them with torchvision), StreamingDataLoader."""
    import litdata as ld

    class Photographs(ld.StreamingDataset):
        augment = transforms()

        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            image = item["image"]
            return self.augment(image.expand(3, -1, -1) if image.shape[0] == 1 else image), item["label"]

    loader = ld.StreamingDataLoader(
        Photographs(str(folder / "lit"), shuffle=True, drop_last=False), batch_size=BATCH, num_workers=WORKERS,
        persistent_workers=True, worker_init_fn=one_thread,
    )  # fmt: skip
    return rate(lambda: (len(x) for x, _ in loader))


def prepare_mosaicml(folder: Path) -> dict[str, float]:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"image": "bytes", "label": "int"}, size_limit=SHARD_BYTES) as out:
        for path, label in files_of(folder):
            out.write({"image": Path(path).read_bytes(), "label": label})
    return {}


def mosaicml(folder: Path) -> dict[str, float]:
    """MosaicML Streaming: MDS shards, a StreamingDataset of one's own in torch's DataLoader. Bytes decoded by
    torchvision, which is quicker than the `jpeg` encoding's Pillow."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Photographs(StreamingDataset):
        augment = transforms()

        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            return self.augment(pixels(item["image"])), item["label"]

    loader = DataLoader(
        Photographs(local=str(folder / "mds"), shuffle=True, batch_size=BATCH), BATCH, num_workers=WORKERS,
        persistent_workers=True, worker_init_fn=one_thread,
    )  # fmt: skip
    return rate(lambda: (len(x) for x, _ in loader))


def dali(folder: Path) -> dict[str, float]:
    """DALI's CPU pipeline as its ImageNet example has it: the decoder decodes the random part only; two threads."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, seed=0)
    def photographs() -> Any:
        data, label = fn.readers.file(file_root=str(folder / "s3" / "images"), random_shuffle=True, name="reader")
        image = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        image = fn.resize(image, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(image, horizontal=fn.random.coin_flip()), label

    loader = DALIGenericIterator(
        [photographs()], ["image", "label"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )  # fmt: skip
    return rate(lambda: (len(batch[0]["image"]) for batch in loader))


PEERS: dict[str, Callable[[Path], dict[str, float]]] = {
    "torch": torch_loader,
    "webdataset": webdataset,
    "litdata": litdata,
    "mosaicml": mosaicml,
    "dali": dali,
}
PREPARE = {"webdataset": prepare_webdataset, "litdata": prepare_litdata, "mosaicml": prepare_mosaicml}

if __name__ == "__main__":
    asked = sys.argv[1]
    which = PREPARE[asked.removeprefix("prepare-")] if asked.startswith("prepare-") else PEERS[asked]
    print("\n" + json.dumps(which(Path(sys.argv[2]))))
