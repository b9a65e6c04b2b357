"""Sources drawn in a folder, and read as the ingest stage does; no Ray: tasks run in line."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import encode
from mapsto.core.storage import Storage
from mapsto.data.chunks import cut
from mapsto.data.shards import ShardJob
from mapsto.data.sources import Told, detect, listing

STORE = Storage()
HEIGHT, WIDTH = 24, 32


def picture(seed: int = 0, format: str = "jpeg") -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), format)


def mask(values: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(values.astype(np.uint8), "L" if not palette else None)
    if palette:
        image = Image.fromarray(values.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [9] * 759)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def packed(folder: Path, how: str, members: dict[str, bytes]) -> Path:
    """A source that holds these files: a folder of them, or an archive."""
    if how == "folder":
        for name, data in members.items():
            put(folder / "source" / name, data)
        return folder / "source"
    if how == "zip":
        with zipfile.ZipFile(folder / "source.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return folder / "source.zip"
    data = tar({f"./{name}": data for name, data in members.items()})
    return put(folder / f"source.{how}", gzip.compress(data) if how == "tgz" else data)


def ingested(
    source: Path, work: Path, layout: str
) -> tuple[dict[str, dict[str, Any]], Counter, Counter, tuple[str, ...]]:
    """Rows by the end of their source's name, reasons of refusal, what was left out, classes; `layout`: as detected."""
    uri = str(source)
    assert detect(uri, STORE)[0] == layout
    artifact = Artifact(str(work / "d" / "ingest" / "0123456789abcdef"), STORE)
    told, folder = Told(), artifact.path("work")
    references = listing(layout, uri, STORE, folder, told=told)
    listed = cut(references, STORE, folder, {}, 0, None, declared=told.classes)
    job = ShardJob(artifact, STORE, listed.classes, listed.columns, 10**8, 1, 2)
    rows: dict[str, dict[str, Any]] = {}
    reasons: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for number in range(listed.chunks):
        summary = job.run(number)
        reasons.update({entry["reason"]: 1 for entry in summary["refused"]})
        dropped.update(summary["dropped"])
        for file in summary["files"]:
            for row in pq.read_table(artifact.path(file["path"])).to_pylist():
                rows[row["source"].rsplit("/", 1)[-1]] = row | {"split": summary["split"]}
    assert listed.rows == len(rows) + sum(reasons.values())
    return rows, reasons, dropped, listed.classes
