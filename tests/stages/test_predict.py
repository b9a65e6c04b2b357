"""predict: every listed file gets its line, by the model here, by actors, and by an endpoint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapsto.config.schema import recipe_model
from mapsto.core import codecs
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.stages import predict
from mapsto.stages.predict import Predict

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return models.train_artifact(tmp_path_factory.mktemp("m"), models.task("classify", model={"name": "resnet10t"}))


def job(tmp_path: Path, model: Artifact | None, said: list[str] | None = None, **options: Any) -> Job:
    recipe = recipe_model()(
        name="p", root=str(tmp_path), data={"train": {"source": "unused"}}, task={"kind": "classify"}
    )
    stage, artifact = Predict(), Artifact(str(tmp_path / "p" / "predict" / "f"), Storage())
    parents = {"model": model} if model else {}
    return Job(
        recipe,
        stage.section(recipe, options),
        parents,
        artifact,
        Storage(),
        False,
        options,
        (said if said is not None else []).append,
    )


def lines(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.read("predictions.jsonl").decode().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images in two folders, one of them spoiled, and a text."""
    for number in range(20):
        path = tmp_path / "in" / ("a" if number < 12 else "b") / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(models.jpeg(number) if number != 7 else b"spoiled")
    (tmp_path / "in" / "readme.txt").write_text("no image")
    return tmp_path / "in"


def check(found: list[dict[str, Any]], folder: Path) -> None:
    """In the order of the listing, each file once."""
    assert [line["uri"] for line in found] == [uri for uri, _ in Storage().walk(str(folder)) if uri.endswith(".jpg")]
    found = sorted(found, key=lambda line: Path(line["uri"]).name)
    assert [Path(line["uri"]).name for line in found] == [f"{n:03d}.jpg" for n in range(20)]
    assert "not an image" in found[7]["error"]
    assert "prediction" not in found[7]
    assert all(line["prediction"]["label"] in models.CLASSES for n, line in enumerate(found) if n != 7)


def test_a_folder(tmp_path: Path, folder: Path, model: Artifact) -> None:
    said: list[str] = []
    made = job(tmp_path, model, said, inputs=str(folder), output=str(tmp_path / "out"))
    done = Predict().run(made)
    assert done.metrics == {"rows": 20, "errors": 1}
    check(lines(made.artifact), folder)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == made.artifact.read("predictions.jsonl")
    assert any("1 files have no image's suffix" in line for line in said)
    assert (
        said[-1]
        == f"predict: 20 answers in {tmp_path}/out/predictions.jsonl; it says why for the 1 that could not be given"
    )
    shown = [line for line in said if ".jpg: " in line]
    answer = r"(label (cup|leaf|stone), probability [\d.]+|not an image .*)"
    assert len(shown) == 8 and all(re.fullmatch(rf"predict: \S+/\d+\.jpg: {answer}", line) for line in shown)


def test_a_file_and_a_file_of_lines(tmp_path: Path, folder: Path, model: Artifact) -> None:
    made = job(tmp_path, model, inputs=[str(folder / "a" / "003.jpg")], output=str(tmp_path / "x" / "answers.jsonl"))
    assert Predict().run(made).metrics == {"rows": 1, "errors": 0}
    assert json.loads((tmp_path / "x" / "answers.jsonl").read_text())["uri"].endswith("003.jpg")


def test_answers_go_to_another_store(tmp_path: Path, folder: Path, s3: Any) -> None:
    model = models.train_artifact(tmp_path, models.task("segment"))
    made = job(tmp_path, model, inputs=[str(folder / "b" / "012.jpg")], output=f"{s3.uri('answers')}/out")
    made = replace(made, artifact=Artifact(made.artifact.uri, s3.storage))
    Predict().run(made)
    (line,) = lines(made.artifact)
    assert json.loads(s3.storage.read("s3://answers/out/predictions.jsonl")) == line
    assert s3.storage.read(f"s3://answers/out/{line['picture']}") == made.artifact.read(line["picture"])


def test_masks_and_drawings_are_files(tmp_path: Path, folder: Path) -> None:
    made = job(
        tmp_path,
        models.train_artifact(tmp_path, models.task("segment")),
        inputs=str(folder / "b"),
        output=str(tmp_path / "out"),
    )
    Predict().run(made)
    for line in lines(made.artifact):
        assert codecs.decode_mask(made.artifact.read(line["prediction"]["mask"])).shape == (40, 48)
        assert codecs.decode(made.artifact.read(line["picture"])).ndim == 3
        assert (tmp_path / "out" / line["picture"]).exists()


def test_seeds_for_a_task_without_input(tmp_path: Path) -> None:
    gan = models.train_artifact(tmp_path, models.task("gan"))
    made = job(tmp_path, gan, count=3, seed=5)
    assert Predict().run(made).metrics == {"rows": 3, "errors": 0}
    found = lines(made.artifact)
    assert [line["request"]["seed"] for line in found] == [5, 6, 7]
    pictures = [codecs.decode(made.artifact.read(line["picture"])) for line in found]
    assert pictures[0].shape == (32, 32, 3)
    assert not np.array_equal(pictures[0], pictures[1])
    with pytest.raises(UserError, match=r"no input image, so .* cannot be used; give --count and --seed"):
        Predict().run(job(tmp_path, gan, inputs="somewhere"))


def test_further_inputs_go_with_every_image(tmp_path: Path, folder: Path) -> None:
    model = models.train_artifact(tmp_path, models.task("stylize"))
    (tmp_path / "style.jpg").write_bytes(models.jpeg(99))
    found = []
    for alpha in ("0", "1"):
        made = job(
            tmp_path, model, inputs=str(folder / "b"), fields={"style": str(tmp_path / "style.jpg"), "alpha": alpha}
        )
        assert Predict().run(made).metrics == {"rows": 8, "errors": 0}
        found.append([codecs.decode(made.artifact.read(line["picture"])) for line in lines(made.artifact)])
    assert found[0][0].shape == (40, 48, 3)
    assert not np.array_equal(found[0][0], found[1][0])
    with pytest.raises(UserError, match="--with styles: no input of this task, did you mean 'style'"):
        Predict().run(job(tmp_path, model, inputs=str(folder / "b"), fields={"styles": "x"}))


def test_further_inputs_go_with_every_file(tmp_path: Path) -> None:
    model = models.train_artifact(tmp_path, models.task("diffusion", conditional=True))
    (tmp_path / "in").mkdir()
    hole = np.zeros((16, 16), np.uint8)
    hole[:, 8:] = 255
    (tmp_path / "hole.png").write_bytes(codecs.encode(hole, "png"))
    for number in range(2):
        (tmp_path / "in" / f"{number}.png").write_bytes(
            codecs.encode(codecs.decode(models.jpeg(number, 16, 16)), "png")
        )
    fields = {"mask": str(tmp_path / "hole.png"), "class": "leaf", "seed": "4"}
    made = job(tmp_path, model, inputs=str(tmp_path / "in"), fields=fields)
    assert Predict().run(made).metrics == {"rows": 2, "errors": 0}
    for line in lines(made.artifact):
        assert line["request"] == {"seed": 4, "class": "leaf", "mask": fields["mask"]}
        given, answer = codecs.decode(Path(line["uri"]).read_bytes()), made.artifact.read(line["prediction"]["image"])
        assert np.array_equal(codecs.decode(answer)[:, :8], given[:, :8])
    drawn = job(tmp_path, model, count=2, fields={"class": "cup"})
    assert Predict().run(drawn).metrics == {"rows": 2, "errors": 0}
    assert [line["request"] for line in lines(drawn.artifact)] == [
        {"seed": 0, "class": "cup"},
        {"seed": 1, "class": "cup"},
    ]
    with pytest.raises(UserError, match="--with clas: no input of this task, did you mean 'class'"):
        Predict().run(job(tmp_path, model, fields={"clas": "cup"}))
    with pytest.raises(UserError, match="--with seed=x: a seed is a number"):
        Predict().run(job(tmp_path, model, fields={"seed": "x"}))


def test_a_model_that_needs_no_image_may_have_one(tmp_path: Path, folder: Path) -> None:
    vae = models.train_artifact(tmp_path, models.task("vae"))
    assert Predict().run(job(tmp_path, vae, inputs=str(folder / "b"))).metrics == {"rows": 8, "errors": 0}
    assert Predict().run(job(tmp_path, vae, count=3)).metrics == {"rows": 3, "errors": 0}


def test_nothing_to_do_is_one_line(tmp_path: Path, model: Artifact) -> None:
    with pytest.raises(UserError, match="which images"):
        Predict().run(job(tmp_path, model))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images here; known suffixes"):
        Predict().run(job(tmp_path, model, inputs=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="not found"):
        Predict().run(job(tmp_path, model, inputs=str(tmp_path / "absent")))


def test_many_files_go_through_ray_and_come_back_in_order(
    tmp_path: Path, folder: Path, model: Artifact, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "IN_PROCESS", 4)
    monkeypatch.setattr("mapsto.stages.predict_many.FILES_PER_BATCH", 4)
    here = job(tmp_path, model, inputs=str(folder))
    assert Predict().run(here).metrics == {"rows": 20, "errors": 1}
    check(lines(here.artifact), folder)
