"""What the README says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mapsto.cli import main
from mapsto.config.load import load

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


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    if recipe.name != "runtime_env.yaml":
        assert load(str(recipe), []).data
