"""The HTTP application over a real socket, without Ray: what it answers, and what it refuses with which status."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests

from mapsto.core import codecs
from mapsto.core.errors import UserError
from mapsto.serving.client import Client
from mapsto.serving.options import Options
from mapsto.serving.runtimes import open_runtime
from mapsto.serving.web import Web
from tests import pictures
from tests.asgi import running

from . import models

Serve = Callable[..., tuple[str, Web]]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    made = {
        "classify": models.task("classify", model={"name": "resnet10t"}), "segment": models.task("segment"), "gan": models.task("gan"),
        "stylize": models.task("stylize"),
        "vae": models.task("vae"), "diffusion": models.task("diffusion"),
    }  # fmt: skip
    return {kind: models.train_artifact(root, task, kind) for kind, task in made.items()}


@pytest.fixture
def served(artifacts: dict[str, Any]) -> Iterator[Serve]:
    stack = []

    def serve(kind: str = "classify", **options: Any) -> tuple[str, Web]:
        web = Web(open_runtime(artifacts[kind]), Options(artifact=artifacts[kind].uri, name="m", **options))
        context = running(web)
        stack.append(context)
        return context.__enter__(), web

    yield serve
    for context in stack:
        context.__exit__(None, None, None)


def test_an_image_as_the_body(served: Serve) -> None:
    url, web = served()
    image = models.jpeg(1)
    response = requests.post(f"{url}/v1/models/m:predict", data=image, headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    (found,) = response.json()["predictions"]
    task = web.runtime.task
    sample, _geometry = task.prepare({"image": image})
    logits = web.runtime.run({"image": sample["image"][None]})["logits"]
    assert found["label"] == models.CLASSES[int(logits.argmax())]
    probabilities = np.exp(logits[0] - logits.max()) / np.exp(logits[0] - logits.max()).sum()
    assert found["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert {top["label"] for top in found["top"]} == set(models.CLASSES)


def test_several_images_as_multipart_are_answered_in_order(served: Serve) -> None:
    url, _ = served()
    images = [models.jpeg(seed) for seed in range(5)]
    together = requests.post(
        f"{url}/v1/models/m:predict", files=[("image", ("a.jpg", image)) for image in images]
    ).json()
    one_by_one = [requests.post(f"{url}/v1/models/m:predict", data=image).json()["predictions"][0] for image in images]
    assert [p["label"] for p in together["predictions"]] == [p["label"] for p in one_by_one]


def test_what_it_says_of_itself(served: Serve) -> None:
    url, _web = served()
    assert requests.get(f"{url}/healthz").json() == {"status": "ok", "model": "m", "fingerprint": "0123456789abcdef"}
    (listed,) = requests.get(f"{url}/v1/models").json()["models"]
    found = requests.get(f"{url}/v1/models/m").json()
    assert listed.items() <= found.items()
    assert found["classes"] == list(models.CLASSES)
    assert found["variant"]["precision"] == "fp32"
    assert found["inputs"] == [{"name": "image", "kind": "image", "required": True}]


def test_a_mask_in_json_and_as_png(served: Serve) -> None:
    url, _ = served("segment")
    image = models.jpeg(2, 30, 50)
    found = requests.post(f"{url}/v1/models/m:predict", data=image).json()["predictions"][0]
    mask = codecs.decode_mask(base64.b64decode(found["mask"]["b64"]))
    assert mask.shape == (30, 50)
    assert sum(found["share"].values()) == pytest.approx(1, abs=1e-5)
    raw = requests.post(f"{url}/v1/models/m:predict", data=image, headers={"Accept": "image/png"})
    assert raw.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(codecs.decode_mask(raw.content), mask)


def test_a_seed_makes_the_same_picture_again(served: Serve) -> None:
    url, _ = served("gan")
    body = {"instances": [{"seed": 1}, {"seed": 2}, {"seed": 1}]}
    first, second, again = (
        p["image"]["b64"] for p in requests.post(f"{url}/v1/models/m:predict", json=body).json()["predictions"]
    )
    assert first == again != second
    assert codecs.decode(base64.b64decode(first)).shape == (32, 32, 3)
    wrong = requests.post(f"{url}/v1/models/m:predict", data=b"x", headers={"Content-Type": "image/png"})
    assert wrong.status_code == 400
    assert "seed" in wrong.json()["error"]


def test_a_hole_is_painted_over_http(served: Serve) -> None:
    url, _ = served("diffusion")
    image = codecs.encode(codecs.decode(models.jpeg(3, 16, 16)), "png")
    hole = np.zeros((16, 16), np.uint8)
    hole[4:12, 4:12] = 255
    fields = {"image": image, "mask": codecs.encode(hole, "png")}
    body = {"seed": 1, **{k: {"b64": base64.b64encode(v).decode()} for k, v in fields.items()}}
    in_json = requests.post(f"{url}/v1/models/m:predict", json={"instances": [body]}).json()["predictions"][0]
    filled = codecs.decode(base64.b64decode(in_json["image"]["b64"]))
    assert np.array_equal(filled[hole == 0], codecs.decode(image)[hole == 0])
    files = {name: (f"{name}.png", data) for name, data in fields.items()}
    in_parts = requests.post(f"{url}/v1/models/m:predict", data={"seed": "1"}, files=files).json()["predictions"][0]
    assert in_parts == in_json
    alone = requests.post(f"{url}/v1/models/m:predict", json={"instances": [{"seed": 1, "image": body["image"]}]})
    assert alone.status_code == 400 and "both an `image` and a `mask`" in alone.json()["error"]


def test_a_bare_image_goes_to_the_first_of_optional_ones(served: Serve) -> None:
    url, _ = served("vae")
    bare = requests.post(f"{url}/v1/models/m:predict", data=models.jpeg(1)).json()["predictions"][0]
    assert codecs.decode(base64.b64decode(bare["image"]["b64"])).shape == (16, 16, 3)
    drawn = requests.post(f"{url}/v1/models/m:predict", json={"instances": [{"seed": 1}]}).json()["predictions"][0]
    assert drawn != bare


def test_a_photograph_of_60_megapixels_is_answered_and_a_bomb_refused(served: Serve) -> None:
    url, _ = served()
    large = codecs.encode(np.full((6_000, 10_000, 3), 90, np.uint8))
    same = codecs.encode(np.full((600, 1_000, 3), 90, np.uint8))
    answers = [
        requests.post(f"{url}/v1/models/m:predict", data=data).json()["predictions"][0] for data in (large, same)
    ]
    assert answers[0]["label"] == answers[1]["label"]
    refused = requests.post(f"{url}/v1/models/m:predict", data=pictures.bomb())
    assert refused.status_code == 400 and "3600 megapixels, over the limit of 100" in refused.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/v1/models/m:predict", None, 405, "Method Not Allowed"),
        ("POST", "/healthz", b"", 405, "Method Not Allowed"),
        ("POST", "/v1/models/other:predict", b"x", 404, "no model 'other' here; served: m"),
        ("GET", "/v1/models/other", None, 404, "no model 'other' here"),
        ("GET", "/nothing", None, 404, "Not Found"),
        ("POST", "/v1/models/m:predict", b"no image", 400, "not an image that can be read"),
        ("POST", "/v1/models/m:predict", b"", 400, "the body is empty"),
        ("POST", "/v1/models/m:predict", models.jpeg(0)[:200], 400, ""),
        ("POST", "/v1/models/m:predict", b"x" * 150_000, 413, "over the limit of 0.1 MB (max_body_mb)"),
        ("POST", "/v1/models/m:predict", iter([b"x" * 60_000] * 3), 413, "over the limit of 0.1 MB"),
    ],
)
def test_refusals_are_one_line(served: Serve, method: str, path: str, body: Any, status: int, message: str) -> None:
    url, _ = served(max_body_mb=0.1)
    response = requests.request(method, url + path, data=body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_a_broken_image_among_several_is_named(served: Serve) -> None:
    url, _ = served()
    files = [("image", ("a.jpg", models.jpeg(1))), ("image", ("b.jpg", b"no"))]
    response = requests.post(f"{url}/v1/models/m:predict", files=files)
    assert response.status_code == 400
    assert response.json()["error"].startswith("request 1: not an image")


def test_a_token_guards_all_but_the_health(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSTO_TEST_TOKEN", "secret")
    url, _ = served(token_env="MAPSTO_TEST_TOKEN")
    assert requests.get(f"{url}/healthz").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        response = requests.post(f"{url}/v1/models/m:predict", data=models.jpeg(1), headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert requests.get(f"{url}/v1/models", headers=headers).status_code == 401
    assert Client(url, "secret").model()["name"] == "m"
    with pytest.raises(UserError, match="401 a valid bearer token is required"):
        Client(url, "wrong").model()
    with pytest.raises(UserError, match="MAPSTO_NO_TOKEN is not set where the replica runs"):
        served(token_env="MAPSTO_NO_TOKEN")


def test_too_slow_is_504(served: Serve) -> None:
    url, web = served(timeout_s=0.1)
    web.batcher.run = lambda items: time.sleep(0.5) or []
    response = requests.post(f"{url}/v1/models/m:predict", data=models.jpeg(1))
    assert response.status_code == 504
    assert "no answer within 0.1 s (timeout_s)" in response.json()["error"]


def test_a_bug_is_500_and_the_next_request_works(served: Serve) -> None:
    url, web = served()
    good, web.batcher.run = web.batcher.run, lambda items: 1 / 0  # type: ignore[assignment,return-value]
    response = requests.post(f"{url}/v1/models/m:predict", data=models.jpeg(1))
    assert response.status_code == 500
    assert "ZeroDivisionError" in response.json()["error"]
    web.batcher.run = good
    assert requests.post(f"{url}/v1/models/m:predict", data=models.jpeg(1)).status_code == 200


def test_concurrent_clients_share_batches(served: Serve) -> None:
    url, web = served(max_batch_size=8)
    client = Client(url, concurrency=16)
    assert client.model()["task"] == "classify"
    images = [models.jpeg(seed % 7) for seed in range(96)]
    answers = dict(client.predict_all((i, lambda image=image: {"image": image}) for i, image in enumerate(images)))
    assert list(answers) == list(range(96))
    assert all(answers[i]["label"] == answers[i % 7]["label"] for i in range(96))  # type: ignore[index]
    assert web.batcher.counts.items == 96
    assert web.batcher.counts.mean > 2


def test_the_client_keeps_refusals_beside_their_key(served: Serve) -> None:
    url, _ = served()
    client = Client(f"{url}/v1/models/m:predict")
    answers = list(client.predict_all((k, lambda v=v: {"image": v}) for k, v in (("a", models.jpeg(1)), ("b", b"no"))))
    assert [k for k, _ in answers] == ["a", "b"]
    assert isinstance(answers[0][1], dict)
    assert isinstance(answers[1][1], UserError)
    assert "400 not an image" in str(answers[1][1])


class Full:
    """An endpoint that is full the first times."""

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked += 1
        full = self.asked <= self.times
        headers = [(b"content-type", b"application/json"), *([(b"retry-after", b"0")] if full else [])]
        await send({"type": "http.response.start", "status": 503 if full else 200, "headers": headers})
        body = b'{"error": "full"}' if full else b'{"predictions": [{"label": "x"}]}'
        await send({"type": "http.response.body", "body": body})


def test_the_client_tries_again_when_the_endpoint_is_full() -> None:
    class Shell:
        def __init__(self, app: Any) -> None:
            self.app = app

        def close(self) -> None: ...

    full = Full(2)
    with running(Shell(full)) as url:  # type: ignore[arg-type]
        assert Client(f"{url}/v1/models/m").predict({"image": b"x"}) == {"label": "x"}
        assert full.asked == 3
        full.times = 100
        with pytest.raises(UserError, match="503 full"):
            Client(f"{url}/v1/models/m", retries=1).predict({"image": b"x"})


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(UserError, match="the endpoint cannot be reached; is the model served there"):
        Client("http://127.0.0.1:9").model()
    with pytest.raises(UserError, match="no URL of an endpoint"):
        Client("somewhere").model()


def test_two_images_of_a_request(served: Serve) -> None:
    url, _ = served("stylize")
    ask = f"{url}/v1/models/m:predict"
    photo, first, second = (("p.jpg", models.jpeg(seed), "image/jpeg") for seed in (1, 2, 3))
    png = {"Accept": "image/png"}
    answers = [
        requests.post(ask, files={"image": photo, "style": style}, headers=png, timeout=30) for style in (first, second)
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    one, other = (codecs.decode(answer.content) for answer in answers)
    assert one.shape == other.shape == (40, 48, 3)  # several tiles of 32, in the photograph's own size
    assert not np.array_equal(one, other)
    bare = requests.post(ask, models.jpeg(1), headers={"Content-Type": "image/jpeg"}, timeout=30)
    assert bare.status_code == 200 and set(bare.json()["predictions"][0]) == {"image"}
    wrong = requests.post(ask, files={"image": photo, "style": first}, data={"alpha": "2"}, timeout=30)
    assert wrong.status_code == 400 and "`alpha` must be a number from 0 to 1" in wrong.text
