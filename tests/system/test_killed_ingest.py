"""An ingest whose process is killed (SIGKILL) at any moment: the same command again ends with the artifact of an undisturbed one."""

from __future__ import annotations

import hashlib
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mapsto.core.codecs import encode

from .test_interrupted import Command

pytestmark = pytest.mark.system

FILES, MOMENTS = 15_000, 3
RECIPE = """\
name: tiny
root: {root}
data: {{train: {{source: "{source}"}}}}
task: {{kind: classify}}
"""
OWN = {"artifact.json", "started.json", "recipe.json", "report.html"}
"""Hold the time, or the place, of the run."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards' worth of tiny pictures, one in a hundred of them cut short."""
    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir()
    for k, image in enumerate(rng.integers(0, 256, (FILES, 12, 12, 3), np.uint8)):
        data = encode(image, "png")
        (folder / "ab"[k % 2] / f"{k}.png").write_bytes(data[:200] if k % 100 == 7 else data)
    return folder


def ingest(folder: Path, source: Path) -> Command:
    folder.mkdir(exist_ok=True)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(root=folder / "artifacts", source=source))
    return Command("ingest", recipe)


def files(folder: Path) -> dict[str, str]:
    """Path in the artifact → sha256."""
    (artifact,) = (folder / "artifacts" / "tiny" / "ingest").iterdir()
    assert (artifact / "artifact.json").exists()
    found = {str(path.relative_to(artifact)): path for path in artifact.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(b"" if name in OWN else path.read_bytes()).hexdigest() for name, path in found.items()}


def test_an_ingest_killed_at_any_moment_ends_with_the_same_files(source: Path, tmp_path: Path) -> None:
    whole = ingest(tmp_path / "whole", source)
    whole.until(r"^(ingest train: making)")
    start = time.monotonic()
    assert whole.end() == 0, whole.text()
    took, truth = time.monotonic() - start, files(tmp_path / "whole")
    assert sum(name.startswith("shards/") for name in truth) >= 5 and any(
        name.startswith("quarantine/") for name in truth
    )
    assert not any(name.startswith("work/") for name in truth)
    # At a moment of the listing, of the first shards and of the last: somewhere in each third.
    rng, killed = np.random.default_rng(10), 0
    for number in range(MOMENTS):
        folder, moment = tmp_path / str(number), (number + rng.random()) / MOMENTS * took * 0.9
        first = ingest(folder, source)
        first.until(r"^(ingest train: making)")
        time.sleep(moment)
        while first.process.poll() is None and len(first.process.children(recursive=True)) <= 3:
            time.sleep(0.05)  # its cluster is not there yet
        if first.process.poll() is None:
            killed += first.send(signal.SIGKILL) == -signal.SIGKILL
        again = ingest(folder, source)
        assert again.end() == 0, again.text()
        assert files(folder) == truth, (number, moment)
    assert killed >= MOMENTS - 1
