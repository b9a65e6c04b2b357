"""Small data set artifacts of random images, written without Ray, for the tests of what reads them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import encode
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset


def noise(rng: np.random.Generator, height: int, width: int, format: str = "jpeg") -> bytes:
    return encode(rng.integers(0, 256, (height, width, 3), np.uint8), format)


def write(
    folder: Path, rows: dict[str, int], *, size: int = 32, per_group: int = 16, per_file: int = 64, seed: int = 0
) -> Dataset:
    """Splits of random images; a row's label is row_id modulo 3."""
    rng = np.random.default_rng(seed)
    artifact = Artifact(str(folder / "ingest" / "0123456789abcdef"), Storage())
    splits, row_id = {}, 0
    for split, count in rows.items():
        files = []
        for start in range(0, count, per_file):
            ids = list(range(row_id + start, row_id + min(start + per_file, count)))
            table = pa.table(
                {
                    "image": pa.array([noise(rng, size, size) for _ in ids], pa.binary()),
                    "row_id": pa.array(ids, pa.int64()),
                    "label": pa.array([i % 3 for i in ids], pa.int64()),
                }
            )
            path = f"shards/{split}-{start:06d}.parquet"
            target = Path(artifact.path(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, target, row_group_size=per_group, write_page_checksum=True)
            groups = [len(ids[i : i + per_group]) for i in range(0, len(ids), per_group)]
            files.append(
                {
                    "path": path,
                    "rows": len(ids),
                    "groups": groups,
                    "bytes": target.stat().st_size,
                    "sha256": f"{seed}-{path}",
                    "ids": [ids[0], ids[-1]],
                }
            )
        splits[split] = {"rows": count, "files": files}
        row_id += count
    manifest = {
        "classes": ["a", "b", "c"],
        "columns": ["image", "row_id", "label"],
        "splits": splits,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "counts": {},
    }
    artifact.write_json(manifest, "dataset.json")
    artifact.begin({}, {}, {})
    artifact.finish(section={}, parents={}, metrics={}, digest=f"d{seed}")
    return Dataset.open(artifact)


def in_bucket(dataset: Dataset, s3: Any) -> Dataset:
    """A copy of a local data set in a new bucket of the tests' S3 server."""
    uri = f"{s3.uri(f'noise-{secrets.token_hex(4)}')}/set"
    for file in Path(dataset.artifact.uri).rglob("*"):
        if file.is_file():
            s3.storage.upload(file, f"{uri}/{file.relative_to(dataset.artifact.uri)}")
    return Dataset.open(Artifact(uri, s3.storage))
