"""How far a run goes."""

import pytest

from mapsto.config.load import load, override
from mapsto.core.errors import UserError
from mapsto.stages import report
from mapsto.stages.ingest import Ingest
from mapsto.stages.pipeline import Pipeline, produce

RECIPE = """
name: short
root: /tmp/nowhere
data: {train: {source: /tmp/none}}
task: {kind: classify}
"""


@pytest.fixture
def made(monkeypatch):
    """The stages that were asked for, none of them run."""
    asked: list[str] = []
    monkeypatch.setattr(Pipeline, "produce", lambda self, name, options=None, force=None: asked.append(name))
    monkeypatch.setattr(report, "write", lambda recipe, found: f"a page of {len(found)}")
    return asked


@pytest.mark.parametrize(
    ("until", "stages"),
    [
        (None, ["ingest", "train", "evaluate", "compress", "serve"]),
        ("compress", ["ingest", "train", "evaluate", "compress"]),
        ("tune", ["ingest"]),  # the recipe has none
        ("ingest", ["ingest"]),
    ],
)
def test_a_run_ends_after_the_stage_asked_for(made, until, stages):
    Pipeline(load(RECIPE, []), lambda line: None).run(until)
    assert made == stages


def test_a_stage_that_is_none_is_told_before_anything_is_made(made):
    with pytest.raises(UserError, match="--until compres: no stage of a run, did you mean 'compress'"):
        Pipeline(load(RECIPE, []), lambda line: None).run("compres")
    assert made == []


@pytest.mark.parametrize(
    "task",
    [
        "{kind: detect, model: {name: fasterrcnn}}",
        "{kind: detect, model: {name: maskrcnn}}",
        "{kind: detect, model: {name: rtdetr, channels: 256, hidden: 1024}}",
        "{kind: stylize, method: optimise}",
    ],
)
def test_a_model_that_cannot_be_compressed_is_refused_before_anything_is_made(made, task):
    said = r"compress is not supported for (detect|stylize): .*set compress to null"
    recipe = load(RECIPE.replace("{kind: classify}", task), [])
    with pytest.raises(UserError, match=said):
        Pipeline(recipe, lambda line: None).run()
    for stage, options in (
        ("compress", {}),
        ("serve", {"deploy": False}),
        ("predict", {"inputs": "x"}),
        ("evaluate", {"model": "compress"}),
    ):
        with pytest.raises(UserError, match=said):
            produce(recipe, stage, options)
    produce(recipe, "evaluate")
    Pipeline(recipe, lambda line: None).run("evaluate")
    Pipeline(override(recipe, {"compress": None}), lambda line: None).run()
    assert made == ["evaluate", "ingest", "train", "evaluate", "ingest", "train", "evaluate", "serve"]


def test_compress_without_a_section_is_refused_before_anything_is_made(made):
    with pytest.raises(UserError, match="compress: the recipe says null"):
        produce(load(RECIPE + "compress: null", []), "compress")
    assert made == []


def test_a_section_is_made_once_for_its_options(monkeypatch, tmp_path):
    """It may take the reading of files, of what people have corrected."""
    recipe = load(RECIPE.replace("/tmp/nowhere", str(tmp_path)), [])
    asked: list[str] = []
    section = Ingest.section
    monkeypatch.setattr(Ingest, "section", lambda *given: asked.append(given[2]["role"]) or section(*given))
    pipeline = Pipeline(recipe, lambda line: None)
    first = pipeline.planned("ingest", {"role": "train"})
    assert pipeline.planned("ingest", {"role": "train"}).uri == first.uri and asked == ["train"]
