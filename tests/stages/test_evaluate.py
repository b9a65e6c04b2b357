"""The evaluation's page, without Ray: what a generator shows."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapsto.core.page import Page
from mapsto.data.dataset import Dataset
from mapsto.stages.evaluate import Evaluate

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()


@pytest.mark.parametrize(("kind", "headings"), [("vae", 3), ("diffusion", 2), ("segment", 0)])
def test_a_generators_images_are_shown(tmp_path: Path, kind: str, headings: int) -> None:
    task = models.task(kind)
    datasets = {"train": Dataset.open(models.dataset(tmp_path, {"train": 4, "val": 6}))}
    ids = np.array([row["row_id"] for row in datasets["train"].read("val")])
    job: Any = SimpleNamespace(parents={"model": models.train_artifact(tmp_path, task)}, section={"split": "val"})
    page = Page("x")
    Evaluate()._showcase(page, job, task, datasets, {"row_id": ids})
    assert page.html().count("<h2>") == page.html().count("<img") == headings
