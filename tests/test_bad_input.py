"""Bad input as a user meets it on the command line: one line that says what and where, exit code 2, nothing half-written."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapsto import cli
from mapsto.core.codecs import encode

from . import pictures

RECIPE = """\
name: bad
root: {root}
data: {{train: {{source: "{source}"}}}}
task: {{kind: classify, image_size: 32, model: {{name: airbench_tiny}}}}
train: {{epochs: 1, workers: 1, cpus_per_worker: 0.5, batch_size: 4}}
"""


def images(folder: Path, *classes: str) -> str:
    rng = np.random.default_rng(1)
    for name in classes:
        for number in range(20):
            file = folder / name / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(rng.integers(0, 256, (40, 40, 3), np.uint8)))
    return str(folder)


def empty(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def text_files(folder: Path) -> str:
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    return str(folder)


def broken(folder: Path) -> str:
    """Two classes of what no decoder takes: text under an image's name, a photograph's first half, a bomb."""
    whole = encode(np.zeros((40, 40, 3), np.uint8))
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "text.jpg").write_text("no image")
        (folder / name / "half.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / name / "bomb.png").write_bytes(pictures.bomb())
    return str(folder)


def one_class(folder: Path) -> str:
    return images(folder, "cat")


def two_classes(folder: Path) -> str:
    return images(folder, "cat", "dog")


@pytest.fixture
def told(cluster: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to fail; returns its one line."""

    def run(verb: str, source: str, *more: str) -> str:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(root=tmp_path / "artifacts", source=source))
        capfd.readouterr()
        code = cli.main([verb, str(recipe), "--quiet", *more])
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), out + err
        assert err.count("\n") == 1, err
        return err.strip()

    return run


@pytest.mark.parametrize(
    ("verb", "source", "settings", "line"),
    [
        ("ingest", empty, (), r"\S+/images: the data set is empty"),
        ("ingest", text_files, (), r"\S+/images: none of its 1 files is an image .* \S+/notes\.txt: not an image"),
        ("ingest", broken, (), r"\S+/images: none of its 6 files is an image .* \S+/bomb\.png: too large: 60000x60000"),
        ("train", one_class, (), r"\S+: one class only \('cat'\); classify needs two or more$"),
        (
            "evaluate",
            two_classes,
            ("data.train.splits.test=0",),
            r"evaluate\.split: the data set of role 'train' has no rows in 'test'; it has",
        ),
        ("train", two_classes, ("train.workers=9", "train.batch_size=18"), r"train.* 9 .*CPUs"),
        ("ingest", two_classes, ("data.train.layout=coco",), r"\S+/images: no COCO JSON in it"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_data(
    told: Callable[..., str],
    tmp_path: Path,
    verb: str,
    source: Callable[[Path], str],
    settings: tuple[str, ...],
    line: str,
) -> None:
    said = told(verb, source(tmp_path / "images"), *(word for setting in settings for word in ("--set", setting)))
    assert re.match(line, said), said
    assert not [file for file in (tmp_path / "artifacts").rglob("artifact.json") if file.parent.parent.name == verb]


@pytest.mark.parametrize(
    ("source", "settings", "line"),
    [
        ("s3://no-such-bucket/images", {}, r"s3://no-such-bucket/images: .*bucket"),
        ("s3://bad-input/none", {}, r"s3://bad-input/none: "),
        ("s3://bad-input/", {"key": "wrong", "secret": "wrong"}, r"s3://bad-input/: .*(refused|denied|credentials)"),
        ("s3://bad-input/", {"endpoint_url": "http://127.0.0.1:9", "retries": 1}, r"s3://bad-input/: .*127\.0\.0\.1:9"),
        (
            "http://127.0.0.1:9/images",
            {},
            r"http://127\.0\.0\.1:9/images: the storage endpoint cannot be reached \(Cannot connect",
        ),
        ("ftpx://host/images", {}, r"ftpx://host/images: .*ftpx"),
        ("/no/such/folder", {}, r"/no/such/folder: not found"),
    ],
)
def test_storage(told: Callable[..., str], s3: Any, source: str, settings: dict[str, Any], line: str) -> None:
    s3.uri("bad-input")
    words = [word for name, value in settings.items() for word in ("--set", f"data.train.storage.{name}={value}")]
    said = told("ingest", source, *words)
    assert re.match(line, said), said
    assert "wrong" not in said  # a key is never shown


@pytest.mark.parametrize("verb", ["serve", "run"])
def test_a_busy_port(told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Said before anything is made: not after hours of training."""
    monkeypatch.setattr("mapsto.stages.serve_deploy._serving_at", lambda: None)  # other tests may have left Serve up
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        said = told(verb, two_classes(tmp_path / "images"), "--set", f"serve.port={port}")
    assert (
        said
        == f"serve.port: 127.0.0.1:{port} cannot be listened on (Address already in use); set serve.port to a free one"
    )
    assert not (tmp_path / "artifacts").exists()
