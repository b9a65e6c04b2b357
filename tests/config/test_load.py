"""Recipes: every error at once, where it stands, and what was probably meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mapsto.config.document import dump, parse, parse_value
from mapsto.config.load import describe, json_schema, load, override, portable
from mapsto.core.errors import UserError
from mapsto.core.registry import TASKS

BASE = """\
name: tiny
root: /tmp/artifacts
data: {train: {source: /tmp/images}}
task: {kind: classify, image_size: 32}
train:
"""


def errors(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(text, overrides)
    return str(caught.value).splitlines()


def test_all_errors_at_once_with_file_line_path_and_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        BASE
        + """\
  epocs: 3
  epochs: ten
  workers: true
  lr: 0.1
  schedule: {kind: cosin}
  optimizer: {kind: sgd, lr: 0, betas: [0.9, 2]}
serve: {prot: 80}
"""
    )
    with pytest.raises(UserError) as caught:
        load(file)
    assert str(caught.value).splitlines() == [
        f"{file}:6: train.epocs: unknown field, did you mean 'epochs'?",
        f"{file}:7: train.epochs: 'ten' is not a whole number",
        f"{file}:8: train.workers: true is not a number",
        f"{file}:9: train.lr: unknown field, did you mean 'train.optimizer.lr'?",
        f"{file}:10: train.schedule.kind: 'cosin' is unknown, did you mean 'cosine'?",
        f"{file}:11: train.optimizer.lr: 0 is too small, must be greater than 0",
        f"{file}:11: train.optimizer.betas.1: 2 is too large, must be at most 1",
        f"{file}:12: serve.prot: unknown field, did you mean 'port'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe: the recipe is empty"),
        ("- a\n- b\n", "recipe:1: a recipe is a mapping of sections, `name: ...` and so on"),
        (BASE + "\tepochs: 3\n", "recipe:6: no valid YAML: a tab; YAML is indented with spaces"),
        (BASE + "  epochs: 3\n  epochs: 4\n", "recipe:7: train.epochs: given twice, first in line 6"),
        (BASE + "  epochs: 3\n---\nname: b\n", "recipe:7: no valid YAML: a second document (---); a recipe is one"),
        (BASE.replace("classify", "clasify"), "recipe:4: task.kind: 'clasify' is unknown, did you mean 'classify'?"),
        (BASE.replace("image_size", "imagesize"), "recipe:4: task.imagesize: unknown field, did you mean 'image_size'?"),
        (BASE.replace("kind: classify, ", ""), f"recipe:4: task.kind: missing; one of: {', '.join(sorted(TASKS))}"),
        (BASE.replace("name: tiny\n", ""), "recipe:1: name: missing, and it has no default"),
        (BASE.replace("tiny", "12"), "recipe:1: name: 12 is not text; put it in quotes if it is meant as text"),
        (BASE.replace("/tmp/images", "'${env:MAPSTO_NOPE}/x'"), "recipe:3: data.train.source: the environment variable MAPSTO_NOPE is not set"),
        (BASE.replace("/tmp/images", "'${env:A'"), "recipe:3: data.train.source: '${env:A' is no environment reference; write ${env:NAME}"),
        (BASE + "  batch_size: 2\n  workers: 4\n", "recipe:5: train: batch_size 2 is smaller than workers x accumulate = 4"),
        (BASE + "  epochs: 1\ncompress: {steps: [{kind: quantize, bits: 4}]}\n", "recipe:7: compress.steps.0.bits: 4 is unknown; known: 8"),
        (BASE + "  epochs: 1\na: &a [*a]\n", "recipe:7: a: nested too deeply, or an alias that contains itself"),
    ],
)  # fmt: skip
def test_one_clear_line(text: str, expected: str) -> None:
    assert expected in errors(text + "\n")


@pytest.mark.parametrize(
    ("override_", "expected"),
    [
        ("train.epocs=3", "--set train.epocs=3: unknown field, did you mean 'epochs'?"),
        ("train.epochs=x", "--set train.epochs=x: 'x' is not a whole number"),
        ("train.schedule={kind: cosin}", "--set train.schedule={kind: cosin}: train.schedule.kind: 'cosin' is unknown, did you mean 'cosine'?"),
        ("train.optimizer.lr.x=3", "--set train.optimizer.lr.x=3: unknown field; the section above it is a plain value"),
        ("nothing", "--set nothing: write --set path.to.field=value"),
        ("train..lr=1", "--set train..lr=1: write --set path.to.field=value"),
        ("train.epochs={", "--set train.epochs={: the value is no valid YAML; quote it"),
        ("compress.steps.3.opset=18", "--set compress.steps.3.opset=18: the recipe has no such list item; set the whole list"),
    ],
)  # fmt: skip
def test_set_errors_name_the_override(override_: str, expected: str) -> None:
    assert errors(BASE, override_) == [expected]


def test_a_secret_is_in_no_error_and_no_description() -> None:
    lines = errors(BASE, "storage.secret=[hidden-one]")
    assert lines == ["--set storage.secret=...: the value is not text; put it in quotes if it is meant as text"]
    for path in ("storage.secret", "data.train.storage.secret", "data.train.storage.token"):
        assert errors(BASE, f"{path}=[hidden-one]") == [
            f"--set {path}=...: the value is not text; put it in quotes if it is meant as text"
        ]
    for text in ("storage={secret: hidden, retires: 1}", "data.train={source: x, storage: {secret: [hidden]}}"):
        (line,) = errors(BASE, text)
        assert line.startswith(f"--set {text.partition('=')[0]}=...: ") and "hidden" not in line
    (line,) = errors(BASE.replace("images}}", "images, storage: {secret: 12345}}}"))
    assert line == "recipe:3: data.train.storage.secret: the value is not text; put it in quotes if it is meant as text"
    assert errors(BASE, "storage.retries=99") == ["--set storage.retries=99: 99 is too large, must be at most 20"]
    recipe = load(BASE + "  epochs: 1\nstorage: {key: visible-id, secret: hidden-two}\n")
    assert "hidden-two" not in describe(recipe) + repr(recipe) + str(recipe.public())
    assert recipe.storage.open().secret == "hidden-two"


def test_set_makes_sections_and_keeps_kinds() -> None:
    recipe = load(BASE, ["train.schedule.warmup=0.25", "train.optimizer.lr=1e-3", "data.style={source: /tmp/style}"])
    assert recipe.train.schedule.kind == "fixed"
    assert recipe.train.schedule.warmup == 0.25
    assert recipe.train.optimizer.lr == 0.001
    assert recipe.data["style"].source == "/tmp/style"


def test_search_space_paths_and_values_are_checked() -> None:
    space = """\
  epochs: 2
tune:
  space:
    train.lr: {kind: uniform, low: 0, high: 1}
    serve.port: {kind: integers, low: 1, high: 3}
    train.schedule.kind: {kind: choice, values: [cosine, fixd]}
    train.optimizer.momentum: {kind: uniform, low: 0, high: 1}
"""
    assert errors(BASE + space) == [
        "recipe:9: tune.space.train.lr: unknown field, did you mean 'train.optimizer.lr'?",
        "recipe:10: tune.space.serve.port: a trial trains; only data, task, train can be searched",
        "recipe:11: tune.space.train.schedule.kind: 'fixd' is unknown, did you mean 'fixed'?",
        "recipe:12: tune.space.train.optimizer.momentum: 1.0 is too large, must be less than 1",
    ]
    recipe = load(
        BASE,
        [
            "tune.space.train.optimizer.lr={kind: loguniform, low: 1e-3, high: 1}",
            "tune.space.train.optimizer.lr.high=0.5",
        ],
    )
    assert recipe.tune is not None
    assert recipe.tune.space["train.optimizer.lr"].high == 0.5  # type: ignore[union-attr]


def test_override_gives_a_trial_s_recipe() -> None:
    recipe = load(BASE + "  schedule: {kind: cosine, final: 0.1, warmup: 0.2}\nstorage: {secret: hidden}\n")
    trial = override(recipe, {"train.optimizer.lr": 0.5, "train.schedule.kind": "fixed"})
    assert (trial.train.optimizer.lr, trial.train.schedule.kind, trial.train.schedule.warmup) == (0.5, "fixed", 0.2)
    assert trial.storage.open().secret == "hidden"
    assert recipe.train.optimizer.lr == 0.1
    with pytest.raises(UserError, match=r"train\.optimizer\.lr: -1 is too small"):
        override(recipe, {"train.optimizer.lr": -1})
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        override(recipe, {"train.epocs": 1})


def test_description_loads_to_the_same_recipe() -> None:
    recipe = load(
        BASE, ["train.schedule={kind: one_cycle}", "tune.space.train.optimizer.lr={kind: choice, values: [0.1, 1e-3]}"]
    )
    assert load(describe(recipe)).model_dump() == recipe.model_dump()


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSTO_BUCKET", "images")
    assert load(BASE.replace("/tmp/images", "'s3://${env:MAPSTO_BUCKET}/x'")).data["train"].source == "s3://images/x"


@pytest.mark.parametrize(
    ("more", "overrides", "path"),
    [
        ("storage: {secret: hidden}\n", [], "storage.secret"),
        ("", ["data.train.storage.token=hidden"], "data.train.storage.token"),
        ("", ["storage={key: hidden, region: x}"], "storage.key"),
    ],
)
def test_a_job_takes_no_written_key_along(more: str, overrides: list[str], path: str) -> None:
    with pytest.raises(UserError, match=f"recipe: {path}: a job's text is kept and listed") as caught:
        portable(BASE + "  epochs: 1\n" + more, overrides)
    assert "hidden" not in str(caught.value)
    portable(BASE + "  epochs: 1\nstorage: {secret: '${env:NOWHERE_SET}'}\n", ["storage.key=${env:NOWHERE_SET}"])


def test_portable_makes_paths_absolute_and_leaves_the_cluster_s_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = BASE.replace("/tmp/images", "images").replace("/tmp/artifacts", "'s3://${env:MAPSTO_NOPE}/'")
    sent, overrides = portable(text, ["train.epochs=2"])
    assert sent == text
    assert overrides == ["train.epochs=2", f"data.train.source={tmp_path}/images"]


@pytest.mark.parametrize("name", ["absent.yaml", ""])
def test_missing_file_and_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        load(tmp_path / name)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load(tmp_path / "r.yaml")


def test_json_schema_agrees_with_the_loader() -> None:
    schema = json_schema()
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    good: Any = yaml.safe_load(BASE + "  epochs: 2\n")
    validator(schema).validate(good)
    assert not validator(schema).is_valid({**good, "train": {"epocs": 2}})
    assert "URI of a folder" in schema["$defs"]["DataConfig"]["properties"]["source"]["description"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("on", "on"), ("12:30", "12:30"), ("1e-3", 0.001), ("010", 10), ("0x10", 16), ("0o17", 15), ("~", None),
     ("2026-11-24", "2026-11-24"), ("true", True), ("1_000", "1_000"), ("-.5", -0.5)],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1), PLAIN, max_size=4))
def test_what_is_dumped_is_read_back(values: dict[str, Any]) -> None:
    document = parse(dump(values), "x")
    if not values:
        return
    wrong_env = [p for p in document.problems if "environment" not in p[1]]
    assert not wrong_env
    assert document.values == values or document.problems


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    parse(text, "x")
    with pytest.raises(UserError):
        load(text + "\n")


def test_timms_optimizers_are_known_to_a_fresh_process():
    """In this one, others have imported timm.optim long ago."""
    code = "from mapsto.config.optimizing import OptimizerConfig; print(OptimizerConfig(kind='lamb').kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "lamb", done.stderr
