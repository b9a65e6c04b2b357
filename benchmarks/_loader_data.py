"""What the loader's benchmark reads: photographs, and data sets ingested from them."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

from mapsto.config.load import load

RECIPE = """
name: bench-loader
root: {root}
data: {{train: {{source: "{source}", splits: {{}}{more}}}}}
task: {{kind: classify, image_size: 224, augment: {{scale: [0.08, 1.0]}}}}
train: {{epochs: 500, batch_size: 64, workers: 1, cpus_per_worker: 1.0}}
"""
PACKED = ", pack: {longest_side: 400, quality: 90}"


def photographs(folder: Path, count: int) -> None:
    """`count` files in `s3/images/<class>/`, the given photographs again and again (hard links)."""
    given = os.environ.get("IMAGES")
    if given:
        files = sorted(p for p in Path(given).expanduser().rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            raise SystemExit(f"IMAGES={given}: no JPEG in it")
    else:
        from mapsto.data.scenes import write

        write(folder / "drawn", 200, 1, (375, 500), splits={"train": 1.0}, spoiled=0, processes=os.cpu_count() or 1)
        files = sorted((folder / "drawn").rglob("*.jpg"))
    for number, file in zip(range(count), itertools.cycle(files), strict=False):
        target = folder / "s3" / "images" / f"class{number % 4}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if number < len(files):
            shutil.copyfile(file, target)
        else:
            source = number % len(files)
            os.link(folder / "s3" / "images" / f"class{source % 4}" / f"{source:06d}.jpg", target)


def recipe(folder: Path, which: str) -> Any:
    """The recipe of a data set: `local`, `packed` (local) or `s3`."""
    if which == "s3":
        return load(RECIPE.format(root="s3://artifacts", source="s3://images", more=""), [])
    more = PACKED if which == "packed" else ""
    return load(RECIPE.format(root=folder / "artifacts", source=folder / "s3" / "images", more=more), [])


def ingest(folder: Path, which: str, cpus: int) -> dict[str, float]:
    """Ingest, and keep the artifact's URI in `<which>.uri`."""
    from mapsto.runtime import session
    from mapsto.stages.pipeline import produce

    start = time.perf_counter()
    with session.connected(num_cpus=cpus):
        artifact = produce(recipe(folder, which), "ingest", {"role": "train"}, say=lambda line: None)
    (folder / f"{which}.uri").write_text(artifact.uri)
    return {"seconds": time.perf_counter() - start}


def shards(folder: Path) -> list[str]:
    """The local data set's Parquet files."""
    root = (folder / "local.uri").read_text()
    return sorted(str(p) for p in Path(root).rglob("*.parquet") if "quarantine" not in str(p))
