"""Every task through every stage, on a tiny drawn data set over S3. A new task is a row in RECIPES.

What is the same for all is started once: the set is ingested once, Ray Serve stays up, only the task in DISTRIBUTED trains and
is evaluated in Ray's workers, and only those in DEPLOYED are served by it; the others in this process, by the same loop, feed,
stages and application."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from PIL import Image
from tests.asgi import running

from mapsto.compress.export import random_inputs
from mapsto.config.load import load, override
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode
from mapsto.core.registry import STAGES, TASKS, load_task, task_class
from mapsto.core.task import Task
from mapsto.data.dataset import Dataset
from mapsto.data.scenes import CLASSES, numbered, write
from mapsto.runtime import session
from mapsto.serving.options import Options
from mapsto.serving.predictor import draws
from mapsto.serving.runtimes import open_runtime
from mapsto.serving.web import Web
from mapsto.stages import states
from mapsto.stages.index import NO_VECTOR
from mapsto.stages.pipeline import Pipeline

SIZE, COUNT, SPOILED = (48, 48), 120, 3

TRAIN = "train: {epochs: 2, batch_size: 24, workers: 2, cpus_per_worker: 0.5, optimizer: {kind: adamw, lr: 0.002}, schedule: {kind: cosine}}"
REST = """
evaluate: {split: test, batch_size: 16, cpus_per_worker: 0.5, worst: 4}
compress: {max_drop: 100, repeats: 5, steps: [{kind: export}, {kind: quantize, calibration: 16}]}
serve: {name: KIND, cpus_per_replica: 0.5, port: PORT}
"""
RECIPES = {
    "classify": "task: {kind: classify, model: {name: resnet10t}, image_size: 32}\n"
    "tune: {search: grid, epochs: 1, workers: 1, concurrent: 1, space: {train.optimizer.lr: {kind: choice, values: [0.002, 1.0e+30, 0.01]}}}",
    "multilabel": "task: {kind: multilabel, model: {name: resnet10t}, image_size: 32}",
    "regress": "task: {kind: regress, model: {name: resnet10t}, image_size: 32}",
    "segment": f"task: {{kind: segment, classes: [background, {', '.join(CLASSES)}], image_size: 32, model: {{widths: [8, 16]}}}}",
    "detect": "task: {kind: detect, image_size: 64, model: {widths: [4, 8, 16, 16, 16]}, min_score: 0.01}",
    "gan": "task: {kind: gan, image_size: 16, latent: 8, width: 8}",
    "vae": "task: {kind: vae, image_size: 16, latent: 8, width: 8}",
    "diffusion": "task: {kind: diffusion, image_size: 16, widths: [8], blocks: 1, steps: 2, conditional: true}",
    "embed": "task: {kind: embed, image_size: 32, model: {name: resnet10t, dimensions: 16}}",
    "stylize": "task: {kind: stylize, image_size: 32, style_size: 32, overlap: 8, style_role: train, features: {model: "
    "{name: cnn, widths: [4, 8]}, content: [layers.4], style: [layers.1, layers.4]}}",
}


DISTRIBUTED = {"gan"}
"""The one with several phases. It is evaluated by Ray actors, too; the others' few rows are measured in this process."""
DEPLOYED = {"classify", "gan"}
"""One that is asked with an image, and one without."""


@pytest.fixture(scope="session")
def bucket(s3, tmp_path_factory):
    """The drawn images in the S3 server: an image folder with split folders, masks and a manifest beside them."""
    folder = tmp_path_factory.mktemp("matrix")
    counts = write(folder, COUNT, 3, SIZE, splits={"train": 0.6, "val": 0.2, "test": 0.2}, spoiled=SPOILED, masks=True)
    uri = s3.uri("matrix")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.storage.upload(file, f"{uri}/images/{file.relative_to(folder)}")
    return uri, counts


def test_every_task_has_a_row_here():
    assert set(RECIPES) == set(TASKS)


@pytest.fixture(scope="module", params=sorted(RECIPES))
def chain(request, bucket, cluster, serve_port):
    """One task's whole recipe, run: its kind, the pipeline, the artifacts by stage, and the recipe before the sweep's choice."""
    uri, _ = bucket
    text = (
        (
            f"name: matrix\nroot: {uri}/artifacts\n"
            f"data: {{train: {{source: '{uri}/images/manifest.jsonl'}}}}\n{RECIPES[request.param]}\n{TRAIN}\n{REST}"
        )
        .replace("PORT", str(serve_port))
        .replace("KIND", request.param)
    )
    pipeline = Pipeline(load(text, []), lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        if request.param in DISTRIBUTED:
            patch.setattr(states, "IN_PROCESS", 0)
        else:
            pipeline.produce("train", {"in_process": True})
        if request.param not in DEPLOYED:
            pipeline.produce("serve", {"deploy": False})
        found = pipeline.run()
    yield request.param, pipeline, found, load(text, [])
    if request.param in DEPLOYED:
        from ray import serve

        serve.delete(f"mapsto-{request.param}")


@pytest.fixture
def host(chain):
    """Where the task is served: by Ray Serve, or by the application that its configuration describes, in this process."""
    kind, pipeline, found, _ = chain
    if kind in DEPLOYED:
        yield f"http://127.0.0.1:{pipeline.recipe.serve.port}"
        return
    (application,) = yaml.safe_load(found["serve"].read("serve.yaml"))["applications"]
    options = Options.of(application["args"])
    with running(Web(open_runtime(Artifact(options.artifact, options.storage.open())), options)) as url:
        yield url


def test_all_stages_leave_complete_artifacts(chain, bucket):
    kind, pipeline, found, _ = chain
    _, counts = bucket
    unsupported = set(task_class(kind).unsupported)
    expected = {"ingest train", "train", "evaluate", "compress", "serve"} - unsupported
    assert set(found) - {"tune"} == expected
    assert any("/tune/" in uri for uri in pipeline.made) == ("tune:" in RECIPES[kind])
    for name, artifact in found.items():
        assert artifact.complete()
        assert name == "ingest train" or artifact.read_json("recipe.json")["task"]["kind"] == kind
    rows = found["ingest train"].read_json("dataset.json")["splits"]
    assert sum(split["rows"] for split in rows.values()) == counts["images"]
    history = [json.loads(line) for line in found["train"].read("history.jsonl").splitlines()]
    assert [record["epoch"] for record in history] == [1, 2]
    primary = load_task(found["train"]).metrics().primary
    assert np.isfinite(found["evaluate"].meta()["metrics"][primary])
    assert found["evaluate"].meta()["metrics"]["rows"] == rows["test"]["rows"]
    report = pipeline.recipe.storage.open().read(f"{pipeline.recipe.root}/matrix/report.html").decode()
    page = found["evaluate"].read("report.html").decode()
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)]
    assert pictures and all(
        decode(data).std() > 5 for data in pictures
    )  # what the task draws, beside charts, which are SVG
    assert set(pictures) <= {base64.b64decode(data) for data in re.findall(r'base64,([^"]+)"', report)}
    assert found["train"].fingerprint in report


def test_a_second_run_reuses_everything(chain):
    _, pipeline, found, _ = chain
    lines: list[str] = []
    again = Pipeline(pipeline.recipe, lines.append)
    for name in ("train", "evaluate", "compress"):
        assert again.produce(name).uri == found[name].uri
    assert not any(": making" in line or ": resuming" in line for line in lines), lines
    assert any(line.startswith("train: reused") for line in lines)


@pytest.mark.parametrize("chain", ["classify"], indirect=True)
def test_no_key_is_in_rays_logs_after_a_sweep(chain, s3):
    assert chain
    (folder,) = session._guards
    logs = [file for file in Path(folder, "session_latest", "logs").rglob("*") if file.is_file()]
    assert len(logs) > 10
    assert not [file for file in logs if s3.secret.encode() in file.read_bytes()]


@pytest.mark.parametrize("chain", ["classify"], indirect=True)
def test_a_sweep_survives_a_failing_trial_and_is_resumed(chain):
    _, pipeline, _, given = chain
    (artifact,) = (each for uri, each in pipeline.made.items() if "/tune/" in uri)
    trials = artifact.read_json("trials.json")
    assert [t["state"] for t in trials] == ["complete", "failed", "complete"]
    assert "not finite" in trials[1]["failed"]
    for each in (trials[0], trials[2]):
        meta = Artifact(each["uri"], artifact.storage).meta()
        assert meta["section"]["train"]["epochs"] == 1
        assert meta["section"]["train"]["optimizer"]["lr"] == each["overrides"]["train.optimizer.lr"]
        assert meta["metrics"]["top1"] == each["value"]
        assert [epoch for epoch, _ in each["curve"]] == [1]
    best = artifact.read_json("best.json")
    assert best["metric"] == max(trials[0]["value"], trials[2]["value"])
    chosen = load(artifact.read("best.yaml").decode())
    lr = best["overrides"]["train.optimizer.lr"]
    assert (chosen.train.optimizer.lr, chosen.train.epochs, chosen.tune) == (lr, 2, None)

    for name in ("artifact.json", "trials/0003.json"):
        artifact.storage.delete(artifact.path(name))
    said: list[str] = []
    assert Pipeline(given, said.append).produce("tune").uri == artifact.uri
    assert "tune: 2 trials finished before, 0 to resume" in said
    assert artifact.read_json("trials.json") == trials
    assert yaml.safe_load(artifact.read("best.yaml"))["train"]["epochs"] == 2


def test_a_sweep_of_two_trials_finds_the_better_one(chain):
    kind, _, found, given = chain
    if "tune:" in RECIPES[kind]:
        return  # the test above
    decay = {"kind": "choice", "values": [0.002, 0.0]}
    sweep = {
        "search": "grid",
        "epochs": 1,
        "workers": 1,
        "concurrent": 1,
        "space": {"train.optimizer.weight_decay": decay},
    }
    artifact = Pipeline(override(given, {"tune": sweep}), lambda line: None).produce("tune")
    trials, best = artifact.read_json("trials.json"), artifact.read_json("best.json")
    assert [t["state"] for t in trials] == ["complete", "complete"], trials
    metrics = load_task(found["train"]).metrics()
    assert best["metric"] == (max if metrics.mode == "max" else min)(t["value"] for t in trials)
    assert load(artifact.read("best.yaml").decode()).task.kind == kind


def test_the_data_is_cleaned_and_indexed_by_the_model_where_it_gives_vectors(chain):
    kind, pipeline, found, _ = chain
    vectors = kind not in NO_VECTOR and task_class(kind).preprocess is not Task.preprocess
    recipe = override(pipeline.recipe, {"index": {"features": "model" if vectors else "colour"}})
    again = Pipeline(recipe, lambda line: None)
    again.made.update({artifact.uri: artifact for artifact in found.values()})
    index = again.produce("index", {"role": "train"})
    rows = found["ingest train"].read_json("dataset.json")["rows_kept"]
    assert index.meta()["metrics"]["images"] == rows
    assert ("model" in index.meta()["parents"]) == vectors
    cleaned = again.produce("clean", {"role": "train"})
    manifest = cleaned.read_json("dataset.json")
    assert manifest["rows_kept"] + manifest["rows_quarantined"] == rows


@pytest.mark.parametrize("chain", sorted(DISTRIBUTED), indirect=True)
def test_actors_measure_what_this_process_does(chain):
    _, pipeline, found, _ = chain
    task, config = load_task(found["train"]), pipeline.recipe.evaluate
    here = states.collect(found["train"], task, {"train": Dataset.open(found["ingest train"])}, "test", config)
    for name, value in task.metrics().compute(here).items():
        assert found["evaluate"].meta()["metrics"][name] == pytest.approx(value, rel=1e-6), name


def test_one_two_and_three_workers_measure_the_same_to_the_last_digit(chain, monkeypatch):
    _, _, found, recipe = chain
    monkeypatch.setattr(states, "IN_PROCESS", 0)
    task, data = load_task(found["train"]), {"train": Dataset.open(found["ingest train"])}
    seen = []
    for workers in (1, 2, 3):
        config = recipe.evaluate.model_copy(update={"workers": workers, "batch_size": 5})
        gathered = states.collect(found["train"], task, data, "test", config)
        values = task.metrics().compute(gathered)
        values.pop("s_per_megapixel", None)  # of stylize: a clock's
        seen.append((values, task.metrics().tables(gathered)))
    assert seen[0] == seen[1] == seen[2]


def test_the_compressed_model_answers_as_the_float_one(chain):
    _, _, found, _ = chain
    float_model, chosen = open_runtime(found["train"]), open_runtime(found["compress"])
    inputs = random_inputs(float_model.task.export(), 2)
    ours, theirs = float_model.run(inputs), chosen.run(inputs)
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        if chosen.variant["precision"] == "fp32":
            assert np.abs(ours[name].astype(float) - theirs[name]).max() <= (
                1 if ours[name].dtype == np.uint8 else 1e-3
            )


def test_the_endpoint_answers_by_the_tasks_signature(chain, host):
    kind, _, found, _ = chain
    url = f"{host}/v1/models/{kind}:predict"
    task = load_task(found["train"])
    if task.signature().inputs[0].kind == "image":
        buffer = io.BytesIO()
        scene = numbered(99, 0, SIZE)
        Image.fromarray(scene.image).save(buffer, "PNG")
        answer = requests.post(url, buffer.getvalue(), headers={"Content-Type": "image/png"}, timeout=30)
    else:
        answer = requests.post(url, json={"instances": [{"seed": 7}]}, timeout=30)
    assert answer.status_code == 200, answer.text
    prediction = answer.json()["predictions"][0]
    assert set(prediction) >= {field.name for field in task.signature().outputs}
    assert requests.get(f"{host}/healthz", timeout=30).status_code == 200
    assert requests.post(f"{host}/v1/models/nothing:predict", b"x", timeout=30).status_code == 404


def test_predict_answers_for_every_file_and_loses_none(chain, bucket, tmp_path):
    kind, pipeline, found, _ = chain
    uri, _ = bucket
    options = {"count": 3, "seed": 1} if kind in ("gan", "diffusion") else {"inputs": f"{uri}/images/test"}
    done = pipeline.produce("predict", {**options, "output": str(tmp_path)})
    answers = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == done.meta()["metrics"]["rows"] > 2
    assert not [a for a in answers if "error" in a]
    if draws(load_task(found["train"])):
        for answer in answers:
            assert decode((tmp_path / answer["picture"]).read_bytes()).std() > 0


def test_the_matrix_of_the_command_line_names_every_cell():
    for kind in TASKS:
        assert set(task_class(kind).unsupported) <= set(STAGES)
