"""A recipe's text with values changed: comments stay where it can be edited, and it always loads as what was meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsto.config.document import parse_value
from mapsto.config.edit import _inline, rewrite
from mapsto.config.load import load, override

TEXT = """\
# The first line: mapsto run x.yaml
name: x
root: /nowhere # here
data: {train: {source: /nowhere}}
task:
  kind: classify
  image_size: 32 # pixels
  model: {name: airbench}
train:
  # how long
  epochs: 6   # enough
  optimizer: {kind: sgd, lr: 0.1} # by hand
tune:
  # what is searched
  space:
    train.optimizer.lr: {kind: loguniform, low: 0.01, high: 1}

# what is served
serve: {name: x}
"""


def changed(text: str, values: dict[str, Any]) -> tuple[str, Any]:
    before = load(text)
    meant = override(before, {**values, "tune": None})
    written = rewrite(text, meant, {tuple(path.split(".")): value for path, value in values.items()}, "tune")
    assert load(written) == meant
    return written, meant


def test_values_change_and_comments_stay() -> None:
    written, _ = changed(TEXT, {"train.optimizer.lr": 0.25, "train.epochs": 9, "task.image_size": 64})
    expected = TEXT.replace("lr: 0.1}", "lr: 0.25}").replace("epochs: 6 ", "epochs: 9 ").replace("32 #", "64 #")
    a, b = expected.index("tune:"), expected.index("\n# what is served")
    assert written == expected[:a] + expected[b:]


def test_new_settings_find_their_section() -> None:
    values = {"train.optimizer.momentum": 0.8, "train.batch_size": 32, "train.early_stop.patience": 2, "compress": None}
    written, _ = changed(TEXT, values)
    assert "optimizer: {momentum: 0.8, kind: sgd, lr: 0.1} # by hand" in written
    assert "  early_stop: {patience: 2}\n  batch_size: 32\n" in written
    assert written.count("#") == TEXT.count("#") - 1


def test_what_cannot_be_edited_is_written_anew() -> None:
    text = TEXT.replace("{kind: sgd, lr: 0.1}", "&o {kind: sgd, lr: 0.1}") + "evaluate: {split: val}\n"
    shared = text.replace("model: {name: airbench}", "model: {name: airbench}\n  augment: &a {flip: 0.5}")
    written, meant = changed(shared, {"train.schedule": {"kind": "one_cycle"}, "task.augment.flip": 0.0})
    assert load(written) == meant
    step = TEXT.replace("optimizer:", "schedule: {kind: step, every: 3}\n  optimizer:")
    written, meant = changed(step, {"train.schedule.kind": "one_cycle"})  # step's own settings have to go
    assert meant.train.schedule.kind == "one_cycle"
    assert "#" not in written


def test_secrets_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hidden-key")
    text = TEXT + "storage: {key: '${env:MY_KEY}', secret: '${env:MY_KEY}'}\n"
    written, _ = changed(text, {"train.epochs": 2})
    assert "${env:MY_KEY}" in written
    assert "hidden-key" not in written
    assert "hidden-key" not in rewrite("name: [", load(text), {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(min_codepoint=32, max_codepoint=0xFFF), max_size=12),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    )
)  # fmt: skip
def test_a_value_on_one_line_reads_as_itself(value: Any) -> None:
    assert parse_value(_inline(value)) == value
