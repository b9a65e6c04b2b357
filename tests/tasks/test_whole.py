"""Several labels, or a number, for each image: losses and metrics against their references, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sk

from mapsto.core.errors import UserError
from mapsto.core.metrics.multilabel import UNKNOWN, MultiLabelMetrics, average_precision
from mapsto.core.metrics.regression import RegressionMetrics
from mapsto.core.page import Page
from mapsto.core.sample import DatasetInfo
from mapsto.core.task import Context
from mapsto.models.scaled import Scaled
from mapsto.tasks.multilabel import MultiHot, MultiLabel, MultiLabelConfig
from mapsto.tasks.regress import Regress, RegressConfig

CLASSES = ("a", "b", "c", "d")
RNG = np.random.default_rng(0)


def several(**config: Any) -> MultiLabel:
    info = DatasetInfo("memory://", "0", CLASSES, {"train": 8, "val": 4}, ("image", "labels"))
    given = {"kind": "multilabel", "image_size": 16, "model": {"name": "mlp"}} | config
    return MultiLabel(MultiLabelConfig.model_validate(given), {"train": info})


def number(values: Any = None, columns: tuple[str, ...] = ("image", "value"), **config: Any) -> Regress:
    values = values or {"train": {"rows": 8, "mean": 30.0, "std": 4.0}, "val": {"rows": 4, "mean": 29.0, "std": 3.0}}
    info = DatasetInfo("memory://", "0", (), {"train": 8, "val": 4}, columns, values=values)
    given = {"kind": "regress", "image_size": 16, "model": {"name": "mlp"}} | config
    return Regress(RegressConfig.model_validate(given), {"train": info})


def context() -> Context:
    return Context(0, 0, 1, torch.Generator(), 0, 1, lambda tensor: tensor)


@settings(max_examples=60)
@given(
    arrays.arrays(np.float32, (12, 4), elements=st.floats(-4, 4, width=16)),
    arrays.arrays(np.int8, (12, 4), elements=st.integers(0, 1)),
)
def test_the_metrics_are_scikit_learns(logits: np.ndarray, target: np.ndarray) -> None:
    found = MultiLabelMetrics(CLASSES).compute({"logits": logits, "target": target})
    named = logits >= 0
    occurs = target.any(0)
    for k in np.flatnonzero(occurs):
        reference = sk.average_precision_score(target[:, k], logits[:, k])
        assert average_precision(target[:, k] == 1, logits[:, k]) == pytest.approx(reference)
    if occurs.any():
        reference = np.mean([sk.average_precision_score(target[:, k], logits[:, k]) for k in np.flatnonzero(occurs)])
        assert found["mAP"] == pytest.approx(reference)
    seen = occurs | named.any(0)
    if seen.any():
        each = [sk.f1_score(target[:, k], named[:, k], zero_division=0) for k in np.flatnonzero(seen)]
        assert found["f1"] == pytest.approx(np.mean(each))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(target, named, average="micro", zero_division=0))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(target, named))


def test_unknown_labels_do_not_count() -> None:
    logits, target = RNG.normal(size=(20, 4)).astype(np.float32), RNG.integers(0, 2, (20, 4)).astype(np.int8)
    metrics = MultiLabelMetrics(CLASSES)
    known = metrics.compute({"logits": logits, "target": target})
    more = {
        "logits": np.concatenate([logits, logits]),
        "target": np.concatenate([target, np.full_like(target, UNKNOWN)]),
    }
    assert metrics.compute(more) == known
    assert (metrics.badness(more)[20:] == 0).all()
    tables = metrics.tables(more)
    assert [each["rows"] for each in tables["per_class"]] == target.sum(0).tolist()
    page = Page("x")
    metrics.draw(page, tables)
    assert "average precision" in page.html()


@settings(max_examples=40)
@given(
    arrays.arrays(np.float64, 9, elements=st.floats(-100, 100)),
    arrays.arrays(np.float64, 9, elements=st.floats(-100, 100)),
)
def test_regression_is_scikit_learns(answer: np.ndarray, value: np.ndarray) -> None:
    found = RegressionMetrics().compute({"answer": answer, "value": value})
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(value, answer))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(value, answer))
    if np.ptp(value) > 1e-6:
        assert found["r2"] == pytest.approx(sk.r2_score(value, answer), rel=1e-6)


def test_equal_values_have_an_r2() -> None:
    still = {"answer": np.ones(3), "value": np.ones(3)}
    assert (
        RegressionMetrics().compute(still)["r2"] == 1
        and RegressionMetrics().compute(still | {"answer": np.zeros(3)})["r2"] == 0
    )
    page, tables = Page("x"), RegressionMetrics().tables(still)
    RegressionMetrics().draw(page, tables)
    assert tables["error"]["50"] == 0 and "Errors" in page.html()


def losses(task: Any, output: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    class Fixed(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return output

    valid = torch.ones(len(output), dtype=torch.bool)
    total, count, _ = task._loss(Fixed(), {"image": torch.zeros(1), "valid": valid} | batch, context())
    return float(total), float(count)


def test_the_plain_loss_is_binary_cross_entropy_over_what_is_known() -> None:
    logits, target = torch.randn(6, 4), torch.randint(0, 2, (6, 4)).to(torch.int8)
    total, count = losses(several(), logits, {"target": target})
    reference = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    assert count == 6 and total == pytest.approx(float(reference.mean(1).sum()), rel=1e-5)
    target[2], target[4, 1:] = UNKNOWN, UNKNOWN
    total, count = losses(several(), logits, {"target": target})
    rows = [float(reference[k].mean()) for k in (0, 1, 3, 5)] + [float(reference[4, 0])]
    assert count == 5 and total == pytest.approx(sum(rows), rel=1e-5)


def test_focal_and_asymmetric_losses_are_their_formulas() -> None:
    logits, target = torch.randn(6, 4, dtype=torch.float64).float(), torch.randint(0, 2, (6, 4)).to(torch.int8)
    p, y = torch.sigmoid(logits.double()), target.double()
    for loss in ({"positive": 2, "negative": 2}, {"positive": 0, "negative": 4, "margin": 0.05}):
        q = (p - loss.get("margin", 0)).clamp(min=0)
        each = -y * (1 - p) ** loss["positive"] * p.log() - (1 - y) * q ** loss["negative"] * (1 - q).log()
        assert losses(several(loss=loss), logits, {"target": target})[0] == pytest.approx(
            float(each.mean(1).sum()), rel=1e-4
        )


@pytest.mark.parametrize("loss", [{}, {"positive": 2, "negative": 2}, {"negative": 0.5, "margin": 0.05}])
def test_gradients_are_finite_at_the_ends(loss: dict[str, float]) -> None:
    logits = torch.tensor([[-80.0, 80.0, -80.0, 80.0]], requires_grad=True)
    target = torch.tensor([[1, 0, 0, 1]], dtype=torch.int8)
    task = several(loss=loss)
    task.forward = lambda model, batch: {"logits": logits}  # type: ignore[method-assign]
    total, _, _ = task._loss(None, {"target": target, "valid": torch.ones(1)}, context())  # type: ignore[arg-type]
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["huber", "mse", "l1"])
def test_a_numbers_loss_is_in_standard_deviations(kind: str) -> None:
    answer, value = torch.tensor([30.0, 42.0, 29.0]), torch.tensor([34.0, 30.0, 29.0])
    error = torch.tensor([-1.0, 3.0, 0.0])
    reference = {"huber": 0.5 + 2.5, "mse": 10.0, "l1": 4.0}[kind]
    assert float(error.abs().sum()) == 4
    assert losses(number(loss=kind), answer, {"value": value}) == (pytest.approx(reference), 3)


def test_the_answers() -> None:
    task = several(threshold=0.6)
    (one, none) = task.decode({"logits": np.array([[2.0, -1, 0.5, 0.3], [-3.0, -3, -3, -4]])}, ())
    assert [each["label"] for each in one["labels"]] == ["a", "c"] and len(one["top"]) == 4 and none["labels"] == []
    assert one["labels"][0]["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    image = np.zeros((16, 16, 3), np.uint8)
    assert task.render({"image": image}, none).dtype == np.uint8
    assert task.truth({"labels": [2, 0, 2]}) == "a, c" and task.truth({"labels": None}) == "unknown"
    assert number().decode({"value": np.array([3.5], np.float32)}, ()) == [{"value": 3.5}]


def test_a_rows_labels_become_ones() -> None:
    hot = MultiHot("labels", 4)
    assert hot.apply({"labels": [3, 1, 3]}, RNG)["target"].tolist() == [0, 1, 0, 1]
    assert hot.apply({"labels": []}, RNG)["target"].tolist() == [0] * 4
    assert hot.apply({"labels": None}, RNG)["target"].tolist() == [UNKNOWN] * 4


def test_a_numbers_scale_is_saved_with_the_model() -> None:
    net = number().build({})
    assert isinstance(net, Scaled) and net.state_dict()["mean"] == 30 and net.state_dict()["std"] == 4
    image = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
    assert net(image).shape == (3,)
    torch.testing.assert_close(net(image), net.net(image)[:, 0] * 4 + 30)


def test_data_that_does_not_fit_is_refused() -> None:
    info = DatasetInfo("memory://x", "0", CLASSES, {"train": 8}, ("image", "label"))
    bare = MultiLabel(MultiLabelConfig.model_validate({"kind": "multilabel"}), {"train": info})
    with pytest.raises(UserError, match="no column labels, and no box_labels"):
        bare.check()
    with pytest.raises(UserError, match="no column value"):
        number(columns=("image",)).check()
    few = {"train": {"rows": 8, "mean": 3.0, "std": 1.0}, "val": {"rows": 1, "mean": 3.0, "std": 0.0}}
    with pytest.raises(UserError, match="3 of 4 rows of val have no value"):
        number(few).check()
    still = {"train": {"rows": 8, "mean": 3.0, "std": 0.0}, "val": {"rows": 4, "mean": 3.0, "std": 0.0}}
    with pytest.raises(UserError, match="all values of train are 3: nothing to learn"):
        number(still).check()
    several().check(), number().check()
