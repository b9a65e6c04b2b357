"""What the README says is what the code does."""

from __future__ import annotations

import json
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mapsto.cli import main
from mapsto.config.load import load
from mapsto.config.schema import recipe_model
from mapsto.core import registry
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.data.sources.look import Look
from mapsto.stages.pipeline import Pipeline

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parent / "serving" / "models.py")).load_module()
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_matrix_is_the_codes(name, capsys):
    assert main(["tasks", "--markdown"]) == 0
    shown = re.search(r"<!-- matrix -->\n(.*?)\n<!-- /matrix -->", (ROOT / name).read_text(), re.DOTALL)
    assert shown is not None
    assert shown.group(1).strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_recipe_is_valid_and_its_mistake_is_found(name):
    text = re.search(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert text is not None
    assert load(text.group(1), []).name == "flowers"
    mistake = re.search(r"^flowers\.yaml:(\d+): (train\.epocs: .*)$", (ROOT / name).read_text(), re.MULTILINE)
    assert mistake is not None
    with pytest.raises(UserError) as caught:
        load(text.group(1).replace("epochs: 20", "epocs: 20"), [])
    assert str(caught.value) == f"recipe:{mistake.group(1)}: {mistake.group(2)}"


def test_the_readmes_show_the_same_commands():
    def commands(name: str) -> list[str]:
        blocks = re.findall(r"```(?:sh|yaml)?\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
        lines = [re.split(r"\s+#\s|^#\s", line)[0].rstrip() for block in blocks for line in block.splitlines()]
        return [line for line in lines if line]

    assert commands("README.md") == commands("README.zh.md")


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    if recipe.name != "runtime_env.yaml":
        assert load(str(recipe), []).data


def test_the_worked_example_of_a_source_reads_what_it_says(tmp_path):
    text = re.search(r"```python\n(.*?)```", (ROOT / "docs/contributing/source.md").read_text(), re.DOTALL)
    assert text is not None
    made = ModuleType("sightings")
    exec(compile(text.group(1), "source.md", "exec"), made.__dict__)
    (tmp_path / "sightings.txt").write_text("night/1.jpg\tlynx\n2.jpg\troe deer\n")
    storage = Storage()
    assert made.recognise(Look(str(tmp_path), storage)) == "there is a sightings.txt"
    found = [(reference.uri, reference.label) for reference in made.listing(str(tmp_path), storage)]
    assert found == [(f"{tmp_path}/night/1.jpg", "lynx"), (f"{tmp_path}/2.jpg", "roe deer")]
    (tmp_path / "sightings.txt").write_text("1.jpg\tlynx\n../2.jpg\tlynx\n")
    with pytest.raises(UserError, match=r"sightings\.txt line 2: expected"):
        list(made.listing(str(tmp_path), storage))


def example(page: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The first example of a page, as the module that it is said to be."""
    text = re.search(r"```python\n(.*?)```", (ROOT / "docs/contributing" / page).read_text(), re.DOTALL)
    assert text is not None
    made = ModuleType(name)
    made.__dict__["__package__"] = name.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, name, made)  # before: dataclasses and pydantic look their module up
    exec(compile(text.group(1), page, "exec"), made.__dict__)
    return made


def test_the_worked_example_of_a_stage_counts(tmp_path, monkeypatch):
    count = example("stage.md", "mapsto.stages.count", monkeypatch).Count()
    data = models.dataset(tmp_path, {"train": 5, "val": 2})
    artifact = Artifact(str(tmp_path / "a" / "count" / "00"), Storage())
    section = count.section(None, {"split": "val"})
    done = count.run(Job(None, section, {"data.train": data}, artifact, artifact.storage, False))
    assert done.metrics == artifact.read_json("count.json") == {"rows": 2}


def test_the_worked_example_of_a_task_goes_through_the_stages(tmp_path, cluster, scenes, monkeypatch):
    from ray import cloudpickle

    made = example("task.md", "mapsto.tasks.grade", monkeypatch)
    cloudpickle.register_pickle_by_value(made)  # Ray's workers cannot import it
    monkeypatch.setitem(registry.TASKS, "grade", "mapsto.tasks.grade:Grade")
    recipe_model.cache_clear()
    text = (
        f"name: docs\nroot: {tmp_path}\ndata: {{train: {{source: '{scenes}'}}}}\n"
        "task: {kind: grade, model: resnet10t, image_size: 32}\n"
        "train: {epochs: 1, batch_size: 16, workers: 1, cpus_per_worker: 0.5, optimizer: {kind: adamw}}\n"
        "compress: {max_drop: 100, repeats: 5, steps: [{kind: export}]}\n"
    )
    try:
        said: list[str] = []
        pipeline = Pipeline(load(text), said.append)
        pipeline.produce("train", {"in_process": True})
        assert np.isfinite(pipeline.produce("evaluate").meta()["metrics"]["MAE"])
        pipeline.produce("compress")
        pipeline.produce("serve", {"deploy": False})
        answers = pipeline.produce("predict", {"inputs": [str(scenes / "test")]}).read("predictions.jsonl").splitlines()
        assert len(answers) > 2 and all("value" in json.loads(line)["prediction"] for line in answers)
    finally:
        recipe_model.cache_clear()
        cloudpickle.unregister_pickle_by_value(made)


def test_the_changelog_has_each_heading_of_a_version_once():
    for version in re.split(r"(?m)^## ", (ROOT / "CHANGELOG.md").read_text())[1:]:
        headings = re.findall(r"(?m)^### .*", version)
        assert len(headings) == len(set(headings)), (version.splitlines()[0], headings)
