"""Untrained models of the real tasks, saved as the train stage saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mapsto.core import codecs
from mapsto.core.artifact import Artifact
from mapsto.core.registry import save_task, task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.core.task import Task

CLASSES = ("cup", "leaf", "stone")


def task(kind: str = "classify", **config: Any) -> Task:
    defaults: dict[str, dict[str, Any]] = {
        "classify": {"image_size": 32, "model": {"name": "resnet18"}},
        "segment": {"image_size": 32, "classes": CLASSES, "model": {"widths": (8, 16)}},
        "gan": {"image_size": 32, "latent": 8, "width": 8},
        "stylize": {
            "image_size": 32,
            "style_size": 32,
            "overlap": 8,
            "style_role": "train",
            "features": {
                "model": {"name": "cnn", "widths": (4, 8)},
                "content": ("layers.4",),
                "style": ("layers.1", "layers.4"),
            },
        },
        "embed": {"image_size": 32, "model": {"name": "resnet10t", "dimensions": 8}},
        "vae": {"image_size": 16, "latent": 8, "width": 8},
        "diffusion": {"image_size": 16, "widths": (4, 8), "blocks": 1, "steps": 2},
    }
    info = DatasetInfo("memory", "0", CLASSES, {"train": 60, "val": 20, "test": 20}, ("image", "label", "mask"))
    cls = task_class(kind)
    return cls(cls.Config(kind=kind, **{**defaults[kind], **config}), {"train": info})


def train_artifact(root: Path, made: Task, name: str = "trained") -> Artifact:
    """A complete train artifact of the task with seeded random weights."""
    import torch
    from safetensors.torch import save

    artifact = Artifact(str(root / name / "train" / "0123456789abcdef"), Storage())
    torch.manual_seed(0)
    artifact.write(save(made.build({}).state_dict()), "model.safetensors")
    save_task(made, artifact)
    artifact.write_json({"kind": "torch", "file": "model.safetensors", "precision": "fp32"}, "variant.json")
    artifact.finish(section={}, parents={}, metrics={}, digest="d")
    return artifact


def jpeg(seed: int, height: int = 40, width: int = 48) -> bytes:
    """A smooth random picture."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return codecs.encode(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def dataset(root: Path, rows: dict[str, int], size: int = 32) -> Artifact:
    """A complete data set artifact of random JPEGs whose labels go round the classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    artifact = Artifact(str(root / "data" / "ingest" / "fedcba9876543210"), Storage())
    Path(artifact.path("shards")).mkdir(parents=True)
    splits, first = {}, 0
    for split, count in rows.items():
        ids = range(first, first + count)
        first += count
        table = pa.table(
            {"image": [jpeg(i, size, size) for i in ids], "label": [i % 3 for i in ids], "row_id": list(ids)}
        )
        path = artifact.path("shards", f"{split}.parquet")
        pq.write_table(table, path, row_group_size=16)
        groups = [min(16, count - start) for start in range(0, count, 16)]
        files = [
            {
                "path": f"shards/{split}.parquet",
                "rows": count,
                "groups": groups,
                "bytes": Path(path).stat().st_size,
                "sha256": "",
            }
        ]
        splits[split] = {"rows": count, "files": files if count else []}
    manifest = {
        "classes": list(CLASSES), "splits": splits, "columns": ["image", "label", "row_id"], "mean": [0.5] * 3, "std": [0.25] * 3, "counts": {},
    }  # fmt: skip
    artifact.write_json(manifest, "dataset.json")
    artifact.finish(section={}, parents={}, metrics={}, digest="d")
    return artifact
