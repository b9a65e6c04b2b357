"""Parquet as the Hugging Face Hub has it: `<split>-00000-of-00001.parquet`, a column `image: {bytes, path}`, and the class
names in the schema's metadata under `huggingface`. Masks lie beside it, in `masks/<split>/`; the column has their paths.

Source: https://huggingface.co/docs/hub/datasets-image, https://huggingface.co/docs/datasets/about_dataset_features
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...core.storage import join
from ..annotations import PER_BOX, WORDS, column_types
from .plan import Plan
from .target import Names, mask_suffix

if TYPE_CHECKING:
    import pyarrow as pa


class Parquet:
    """One file a split, streamed: a row group of the data set is a row group of the file."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keeps = frozenset({"label", "labels", "value", "mask", *WORDS, "boxes", *PER_BOX})
        self.names = Names()
        self.schema = schema(plan)
        self.open: Any = None

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        import pyarrow as pa

        masks, table = [], []
        for row in rows:
            stem, suffix = self.names.of(split, row)
            out = {name: row.get(name) for name in self.schema.names}
            out |= {"image": {"bytes": row["image"], "path": f"{stem}{suffix}"}, "split": split}
            if "label" in out:
                out["label"] = row["label"] if self.plan.label(row) is not None else None
            for column in ("box_labels", "labels"):
                if out.get(column) is not None:
                    out[column] = self.plan.named(row, column)
            if row.get("mask"):
                out["mask"] = f"masks/{split}/{stem}{mask_suffix(row['mask'])}"
                masks.append((out["mask"], row["mask"]))
            table.append(out)
        if masks:
            self.plan.target.put(masks)
        self._writer(split).write_table(pa.Table.from_pylist(table, self.schema), row_group_size=max(len(table), 1))

    def _writer(self, split: str) -> Any:
        import pyarrow.parquet as pq

        if self.open is None:
            target = self.plan.target
            filesystem, path = target.storage.arrow(join(target.uri, _name(split)))
            others = {name: "ZSTD" for name in self.schema.names if name != "image"}
            compression = {"image.bytes": "NONE", "image.path": "ZSTD"} | others
            self.open = pq.ParquetWriter(
                path, self.schema, filesystem=filesystem, use_dictionary=False, compression=compression
            )
        return self.open

    def close(self, split: str) -> None:
        self._writer(split).close()
        self.open = None
        target = self.plan.target
        fs, path = target.storage.fs(join(target.uri, _name(split)))
        target.wrote(1, int(target.storage.retry(target.uri, lambda: fs.size(path)) or 0))

    def finish(self) -> None:
        pass


def _name(split: str) -> str:
    return f"{split}-00000-of-00001.parquet"


def schema(plan: Plan) -> pa.Schema:
    """The files' schema with Hugging Face's features in its metadata."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds: dict[str, pa.DataType] = {"image": image}
    if "label" in plan.columns:
        kinds["label"] = pa.int64()
    kinds |= {"split": pa.string(), "source": pa.string()}
    own = {"mask": pa.string(), "box_labels": pa.list_(pa.string()), "labels": pa.list_(pa.string())}
    kinds |= {name: own.get(name, kind) for name, kind in column_types().items() if name in plan.columns}
    features = {name: _feature(kind) for name, kind in kinds.items()}
    features["image"] = {"_type": "Image"}
    if "label" in kinds:
        features["label"] = {"names": list(plan.classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([*kinds.items()], metadata=metadata)


def _feature(kind: Any) -> dict[str, Any]:
    import pyarrow as pa

    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": {"float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
