"""A model whose answer to one input is not finite: that one is refused, those beside it are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from mapsto.core import codecs
from mapsto.core.artifact import Artifact
from mapsto.core.errors import BrokenModel
from mapsto.core.sample import Arrays
from mapsto.core.storage import Storage
from mapsto.serving.options import Options
from mapsto.serving.predictor import Asked, Predictor
from mapsto.serving.runtimes import each_answer, open_runtime
from mapsto.serving.web import Web
from tests.asgi import running

from . import models

BLACK = codecs.encode(np.zeros((40, 48, 3), np.uint8), "png")


class Broken:
    """A runtime that has no finite answer for a black image."""

    def __init__(self, artifact: Artifact) -> None:
        self._runtime = open_runtime(artifact)
        self.task, self.variant = self._runtime.task, self._runtime.variant
        self.asked: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.asked.append(len(inputs["image"]))
        logits = self._runtime.run(inputs)["logits"].copy()
        logits[~inputs["image"].any((1, 2, 3))] = np.nan
        return {"logits": logits}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    task = models.task("classify", model={"name": "resnet10t"})
    return Broken(models.train_artifact(tmp_path_factory.mktemp("model"), task))


@pytest.mark.parametrize("bad", [(), (0,), (6,), (2, 3), tuple(range(7))])
def test_each_request_has_its_own_answer(broken: Broken, bad: tuple[int, ...]) -> None:
    images = [BLACK if number in bad else models.jpeg(number) for number in range(7)]
    prepared = [broken.task.prepare({"image": image}) for image in images]
    found = each_answer(broken, prepared)
    assert [number for number, one in enumerate(found) if isinstance(one, BrokenModel)] == list(bad)
    for one, alone in zip(found, prepared, strict=True):
        if not isinstance(one, BrokenModel):
            assert one["label"] == each_answer(broken, [alone])[0]["label"]  # type: ignore[index]
    assert each_answer(broken, []) == []


def test_predict_writes_a_line_for_each_file(broken: Broken, tmp_path: Path) -> None:
    for name, data in (("a", models.jpeg(1)), ("b", BLACK), ("c", b"no image")):
        (tmp_path / name).write_bytes(data)
    predictor = Predictor(broken, Storage(), Artifact(str(tmp_path / "out"), Storage()))
    lines = predictor([Asked(number, str(tmp_path / name)) for number, name in enumerate("abc")])
    assert lines[0]["prediction"]["label"] in models.CLASSES
    assert "logits are not finite" in lines[1]["error"] and "prediction" not in lines[1]
    assert "not an image" in lines[2]["error"]


def test_the_endpoint_answers_those_beside_it(broken: Broken) -> None:
    web = Web(broken, Options(artifact="memory", name="m", max_batch_size=4))
    infer, gate = web.batcher.run, threading.Event()
    web.batcher.run = lambda items: infer(items) if gate.wait(60) else []
    with running(web) as url, ThreadPoolExecutor(3) as pool:

        def ask(image: bytes) -> requests.Response:
            return requests.post(f"{url}/v1/models/m:predict", data=image, timeout=60)

        before = pool.submit(ask, models.jpeg(0))
        until(lambda: web.batcher.counts.batches == 1)
        bad, good = pool.submit(ask, BLACK), pool.submit(ask, models.jpeg(1))
        until(lambda: len(web.batcher._queue) == 2)
        gate.set()
        assert before.result().status_code == good.result().status_code == 200
        assert good.result().json()["predictions"][0]["label"] in models.CLASSES
        assert bad.result().status_code == 500
        assert "classify: the model's logits are not finite" in bad.result().json()["error"]
    assert broken.asked[-3:] == [2, 1, 1]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
