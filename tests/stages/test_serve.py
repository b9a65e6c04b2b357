"""serve: deployed on the session's cluster behind the fast ingress, asked over HTTP, deployed again, and refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from mapsto.config.schema import recipe_model
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.serving.app import build
from mapsto.serving.client import Client
from mapsto.serving.options import Options
from mapsto.stages import serve_deploy
from mapsto.stages.predict import Predict
from mapsto.stages.serve import Serve, configuration, default_name, serving_options

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()


def recipe(tmp_path: Path, port: int = 8000, **serve: Any) -> Any:
    return recipe_model()(
        name="Small.One", root=str(tmp_path), data={"train": {"source": "unused"}}, task={"kind": "classify"}, compress=None,
        storage={"endpoint_url": "http://127.0.0.1:1", "key": "KEY-A", "secret": "SECRET-B"}, serve={"port": port, **serve},
    )  # fmt: skip


def job(
    tmp_path: Path,
    model: Artifact,
    port: int,
    said: list[str] | None = None,
    options: dict[str, Any] | None = None,
    **serve: Any,
) -> Job:
    made, stage = recipe(tmp_path, port, **serve), Serve()
    artifact = Artifact(str(tmp_path / "Small.One" / "serve" / "f"), Storage())
    return Job(
        made,
        stage.section(made, {}),
        {"model": model},
        artifact,
        Storage(),
        False,
        options or {},
        (said if said is not None else []).append,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return models.train_artifact(
        tmp_path_factory.mktemp("served"), models.task("classify", model={"name": "resnet10t"})
    )


def test_the_configuration_is_valid_and_holds_no_secret(tmp_path: Path, trained: Artifact) -> None:
    made = job(tmp_path, trained, 8000, options={"deploy": False})
    Serve().run(made)
    text = made.artifact.read("serve.yaml").decode()
    assert "KEY-A" not in text
    assert "SECRET-B" not in text
    config = yaml.safe_load(text)
    assert config == configuration(made.recipe, serving_options(made.recipe, trained))
    (application,) = config["applications"]
    assert application["args"]["name"] == "small-one"
    assert application["args"]["storage"]["endpoint_url"] == "http://127.0.0.1:1"
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}


def test_which_model_is_served(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert Serve().needs(made, {}) == {"model": ("train", {})}
    assert Serve().needs(made.model_copy(update={"compress": object()}), {}) == {"model": ("compress", {})}
    assert default_name("Ä b.C") == "b-c"
    assert default_name("…") == "model"


def test_wrong_args_and_a_missing_artifact_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="serving args: artifact: Field required; name: Field required; bathc: Extra inputs"
    ):
        build({"bathc": 1})
    with pytest.raises(UserError, match="no finished artifact here"):
        build({"artifact": str(tmp_path / "x" / "train" / "0"), "name": "m"})
    with pytest.raises(UserError, match="this ingest artifact holds no model"):
        build({"artifact": models.dataset(tmp_path, {"train": 3}).uri, "name": "m"})


def test_batches_can_fill() -> None:
    for size in (1, 16, 64):
        assert Options(artifact="a", name="m", max_batch_size=size).max_ongoing > size


def test_a_busy_port_is_named(cluster: str, tmp_path: Path, trained: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_deploy, "_serving_at", lambda: None)  # whatever another test started
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"serve.port: .*{busy}"):
            Serve().run(job(tmp_path, trained, busy))


@pytest.fixture(scope="module")
def deployed(
    cluster: str, trained: Artifact, serve_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    from ray import serve

    said: list[str] = []
    done = Serve().run(
        job(tmp_path_factory.mktemp("serve"), trained, serve_port, said, cpus_per_replica=0.5, max_batch_size=8)
    )
    assert done.metrics["ingress"] == ("fast" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "python")
    assert said == [f"serve: small-one answers at {done.metrics['url']}:predict"]
    yield done.metrics["url"]
    serve.delete("mapsto-small-one", _blocking=False)


def test_the_endpoint_answers(deployed: str) -> None:
    client = Client(deployed)
    assert client.model()["classes"] == list(models.CLASSES)
    answers = dict(client.predict_all((n, lambda n=n: {"image": models.jpeg(n % 5)}) for n in range(64)))
    for n in range(64):  # to rounding: batches of other sizes go through other kernels
        mine, first = answers[n]["top"], answers[n % 5]["top"]
        assert {t["label"]: t["probability"] for t in mine} == pytest.approx(
            {t["label"]: t["probability"] for t in first}, abs=1e-4
        )
    assert client.model()["mean_batch"] > 1


def test_statuses_pass_the_proxy(deployed: str) -> None:
    assert requests.post(f"{deployed}:predict", data=b"no image").status_code == 400
    assert requests.post(f"{deployed}x:predict", data=b"x").status_code == 404
    assert requests.get(f"{deployed}:predict").status_code == 405
    assert requests.post(f"{deployed}:predict", data=b"x" * 20_000_001).status_code == 413


def test_predict_asks_the_endpoint(deployed: str, tmp_path: Path, trained: Artifact) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(models.jpeg(number) if number else b"no")
    made, stage = recipe(tmp_path), Predict()
    options = {"inputs": str(tmp_path), "endpoint": deployed}
    assert stage.needs(made, options) == {}
    artifact = Artifact(str(tmp_path / "out" / "predict" / "f"), Storage())
    done = stage.run(
        Job(made, stage.section(made, options), {}, artifact, Storage(), False, options, lambda line: None)
    )
    assert done.metrics == {"rows": 5, "errors": 1}


def test_deployed_again_with_another_model(deployed: str, serve_port: int, tmp_path: Path) -> None:
    other = models.train_artifact(tmp_path, models.task("segment"), "other")
    moved = Artifact(other.uri.replace("0123456789abcdef", "another"), Storage())
    Path(other.uri).rename(moved.uri)
    Serve().run(job(tmp_path, moved, serve_port, cpus_per_replica=0.5))
    assert Client(deployed).model()["task"] == "segment"


def test_a_second_model_gets_a_route_of_its_own(
    deployed: str, tmp_path: Path, trained: Artifact, serve_port: int
) -> None:
    from ray import serve

    done = Serve().run(job(tmp_path, trained, serve_port, name="second", cpus_per_replica=0.5))
    assert done.metrics["url"] == f"http://127.0.0.1:{serve_port}/second/v1/models/second"
    assert Client(done.metrics["url"]).predict({"image": models.jpeg(1)})["label"] in models.CLASSES
    assert Client(deployed).model()["name"] == "small-one"
    serve.delete("mapsto-second", _blocking=False)


def test_a_second_port_is_refused(deployed: str, tmp_path: Path, trained: Artifact, serve_port: int) -> None:
    with pytest.raises(UserError, match=rf"already listens on 127.0.0.1:{serve_port}, .* set serve.port={serve_port}"):
        Serve().run(job(tmp_path, trained, serve_port + 1))


def test_no_free_cpu_is_refused_with_the_numbers(
    deployed: str, tmp_path: Path, trained: Artifact, serve_port: int
) -> None:
    wanted = {"name": "large", "cpus_per_replica": 64}
    with pytest.raises(
        UserError,
        match=r"serve.replicas.min 1 x serve.cpus_per_replica 64 = 64 CPUs, and [\d.]+ of the cluster's 4 are free",
    ):
        Serve().run(job(tmp_path, trained, serve_port, options={"patience_s": 1}, **wanted))


def test_a_replica_that_cannot_start_says_why(
    deployed: str, tmp_path: Path, trained: Artifact, serve_port: int
) -> None:
    with pytest.raises(UserError, match=r"could not be started: .*MAPSTO_ABSENT is not set where the replica runs"):
        Serve().run(job(tmp_path, trained, serve_port, name="guarded", token_env="MAPSTO_ABSENT", cpus_per_replica=0.5))
