"""A data set's vectors, shard by shard in Ray tasks: what gives them, and the Parquet files that hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..core import codecs
from ..core.artifact import Artifact
from ..core.preprocess import Preprocess
from ..curate.features import CLASSICAL, LONGEST
from ..data.dataset import SplitIndex, read_group

ROWS_AT_ONCE = 32
"""Images that a network looks at together."""


@dataclass(frozen=True)
class Features:
    """What turns images into vectors; `model`: the trained one's artifact. Picklable, opened once in each process."""

    kind: str
    backbone: str | None = None
    pretrained: bool = False
    image_size: int = 224
    model: Artifact | None = None

    def of(self, images: Sequence[bytes]) -> np.ndarray:
        """N encoded images → N×D float32 of unit length (zeros where an image has no features). UserError for what is no
        image."""
        return _opened(self)(images)


@lru_cache(maxsize=1)
def _opened(features: Features) -> Callable[[Sequence[bytes]], np.ndarray]:
    if features.kind in CLASSICAL:
        look = CLASSICAL[features.kind]
        return lambda images: np.stack([look(codecs.decode(data, at_least=LONGEST)) for data in images])
    return _network(features)


def _network(features: Features) -> Callable[[Sequence[bytes]], np.ndarray]:
    import torch
    import torch.nn.functional as F

    from ..models.pooled import backbone, pooled

    net: Any
    if features.model is not None:
        from ..serving.runtimes import open_runtime

        runtime: Any = open_runtime(features.model)
        net, preprocess = runtime.model, runtime.task.preprocess
    else:
        assert features.backbone is not None, features
        net = backbone(features.backbone, features.pretrained, features.image_size)
        preprocess = Preprocess(features.image_size)
    assert preprocess is not None, features  # the stage has refused such a task

    def look(images: Sequence[bytes]) -> np.ndarray:
        parts = []
        for start in range(0, len(images), ROWS_AT_ONCE):
            batch = np.stack([preprocess(data)[0] for data in images[start : start + ROWS_AT_ONCE]])
            with torch.inference_mode():
                parts.append(F.normalize(pooled(net, torch.from_numpy(batch)).float()).numpy())
        return np.concatenate(parts)

    return look


@dataclass(frozen=True)
class VectorsJob:
    """What every task is handed."""

    artifact: Artifact
    shards: tuple[SplitIndex, ...]
    features: Features

    def name(self, number: int) -> str:
        return f"{number:06d}.parquet"

    def run(self, number: int) -> None:
        """Write one shard's vectors, in its rows' order: row_id, label, source, vector (float16)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        index, parts, vectors = self.shards[number], [], []
        for group in range(len(index.groups)):
            rows = read_group(index, group, ("image", "row_id", "label", "source"))
            vectors.append(self.features.of(rows["image"].to_pylist()).astype(np.float16))
            parts.append(rows.drop_columns("image"))
        joined = np.concatenate(vectors)
        column = pa.FixedSizeListArray.from_arrays(pa.array(joined.ravel()), joined.shape[1])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(parts).append_column("vector", column), sink)
        self.artifact.write(sink.getvalue().to_pybytes(), "vectors", self.name(number))


def read_columns(artifact: Artifact, number: int, columns: Sequence[str]) -> Any:
    """Columns of one shard's vectors, an Arrow table."""
    import pyarrow.parquet as pq

    uri = artifact.path("vectors", f"{number:06d}.parquet")
    filesystem, path = artifact.storage.arrow(uri)
    return artifact.storage.retry(uri, lambda: pq.read_table(path, filesystem=filesystem, columns=list(columns)))


def vectors_of(table: Any) -> np.ndarray:
    """The `vector` column as N×D float16."""
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
