"""What `max_pixels` lets in is read by every stage after ingest; the limit of the endpoint, of predict and search stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mapsto.config.curation import CleanConfig
from mapsto.config.schema import DataConfig
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import MAX_PIXELS, decode, encode
from mapsto.core.errors import UserError
from mapsto.core.preprocess import Preprocess
from mapsto.core.storage import Storage
from mapsto.data.annotations import _ids
from mapsto.data.export import export
from mapsto.data.transforms import Prepare
from mapsto.serving.predictor import Asked, Predictor
from mapsto.serving.protocol import within_limits
from mapsto.stages import search
from mapsto.stages.clean import Clean
from mapsto.stages.index_vectors import Features
from tests import pictures

from .test_clean import made, no_cluster  # noqa: F401  the fixture
from .test_ingest import here, run  # noqa: F401  the fixture

SIDE = 10_016
"""Its square is a little above the limit that holds where nothing else is said."""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    steps = np.linspace(0, 255, SIDE).astype(np.uint8)
    pixels = np.broadcast_to(steps[:, None, None], (SIDE, SIDE, 3))
    (folder / "large.jpg").write_bytes(encode(pixels, "jpeg", 60))
    (folder / "small.jpg").write_bytes(encode(np.ascontiguousarray(pixels[::100, ::90]), "jpeg", 60))
    return folder


def test_what_was_let_in_is_read_by_every_stage(here, no_cluster, large, tmp_path):  # noqa: F811
    refusing, done, _ = run(large, tmp_path / "refusing", splits={})
    assert done.metrics["quarantined"] == 1 and list(refusing.manifest["reasons"]) == ["too large"]
    given = {"max_pixels": 200_000_000, "splits": {}}
    dataset, done, _ = run(large, tmp_path / "out", **given)
    assert done.metrics["images"] == 2
    recipe = SimpleNamespace(
        name="large", data={"train": DataConfig(source=str(large), **given)},
        clean=CleanConfig(rules={"too_small": {"policy": "quarantine", "threshold": 1000}}), task=SimpleNamespace(kind="classify"),
    )  # fmt: skip
    cleaned, done, _ = made(tmp_path / "clean" / "0", Clean(), recipe, {"data": dataset.artifact})
    assert done.metrics["images"] == 1
    (row,) = cleaned.read("train")
    assert Features("colour").of([row["image"]]).any()
    assert Prepare(Preprocess(32)).apply(row, np.random.default_rng(0))["image"].shape == (32, 32, 3)
    export(cleaned, str(tmp_path / "folder"), "folder", say=lambda line: None)
    assert len(list((tmp_path / "folder").rglob("*.jpg"))) == 1


def test_a_mask_may_be_as_large_as_its_image():
    mask = encode(np.zeros((SIDE, SIDE), np.uint8), "png")
    assert _ids(mask, SIDE, SIDE).shape == (SIDE, SIDE)
    with pytest.raises(UserError, match="too large"):
        _ids(mask, 100, 100)


def test_the_door_for_requests_is_as_narrow_as_before(large):
    small, data = ((large / name).read_bytes() for name in ("small.jpg", "large.jpg"))
    assert within_limits({"image": small, "seed": 3}) == {"image": small, "seed": 3}
    with pytest.raises(UserError, match="100 megapixels, over the limit of 100"):
        within_limits({"image": small, "style": data})
    with pytest.raises(UserError, match="over the limit"):
        decode(data, MAX_PIXELS)


def test_predict_tells_of_a_file_over_the_limit_and_goes_on(tmp_path):
    def prepare(request):
        raise UserError("no model here")  # what is within the limits comes so far

    names = {"bomb.png": pictures.bomb(), "small.png": encode(np.zeros((8, 8, 3), np.uint8), "png")}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    runtime = cast(Any, SimpleNamespace(task=SimpleNamespace(prepare=prepare)))
    predictor = Predictor(runtime, Storage(), Artifact(str(tmp_path / "out"), Storage()))
    bomb, small = predictor([Asked(k, str(tmp_path / name)) for k, name in enumerate(names)])
    assert "over the limit of 100" in bomb["error"] and small["error"] == "no model here"


def test_search_refuses_an_image_over_the_limit(tmp_path, monkeypatch):
    def searcher(index):
        return SimpleNamespace(features=SimpleNamespace(of=lambda images: pytest.fail("it was opened")))

    monkeypatch.setattr(search, "indexed", lambda recipe, role: None)
    monkeypatch.setattr(search, "Searcher", searcher)
    (tmp_path / "bomb.png").write_bytes(pictures.bomb())
    recipe = cast(Any, SimpleNamespace(storage=SimpleNamespace(open=Storage)))
    with pytest.raises(UserError, match=r"bomb\.png: .*over the limit of 100"):
        list(search.search(recipe, image=str(tmp_path / "bomb.png")))
