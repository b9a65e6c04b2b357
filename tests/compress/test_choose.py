"""The choice is a pure function of the table."""

from __future__ import annotations

import math

import pytest

from mapsto.compress.choose import Row, choose, drop
from mapsto.core.errors import UserError

FLOAT = Row("float", 0.900, 10.0, 44.0, 100.0)
ONNX = Row("onnx", 0.900, 6.0, 44.0, 166.0)
INT8 = Row("int8", 0.897, 2.0, 11.0, 500.0)


def pick(*rows: Row, max_drop: float = 0.5, target: str = "latency_p50_ms", mode: str = "max"):
    return choose(rows, primary="top1", mode=mode, max_drop=max_drop, target=target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "chosen"), [("latency_p50_ms", "int8"), ("size_mb", "int8"), ("throughput", "int8")]
)
def test_the_best_at_the_target_among_those_within_the_drop(target: str, chosen: str) -> None:
    found = pick(FLOAT, ONNX, INT8, target=target)
    assert found.name == chosen
    assert "loses 0.30 points of top1" in found.reason


def test_a_variant_that_loses_too_much_is_left_out() -> None:
    assert pick(FLOAT, ONNX, INT8, max_drop=0.2).name == "onnx"


def test_the_limit_itself_is_within() -> None:
    assert pick(FLOAT, INT8, max_drop=0.3).name == "int8"


def test_none_qualifies_keeps_the_float_model_and_says_so() -> None:
    found = pick(FLOAT, INT8, max_drop=0.1)
    assert found.name == "float"
    assert "no variant stays within 0.1 points" in found.reason
    assert "int8 loses 0.30" in found.reason


def test_none_better_keeps_the_float_model() -> None:
    found = pick(FLOAT, Row("onnx", 0.9, 12.0, 44.0, 80.0))
    assert found.name == "float"
    assert "none of onnx betters it" in found.reason


def test_only_the_float_model() -> None:
    assert pick(FLOAT).name == "float"


def test_a_score_that_is_no_number_never_qualifies() -> None:
    assert pick(FLOAT, Row("int8", math.nan, 1.0, 1.0, 1e3), max_drop=100).name == "float"


def test_where_smaller_is_better_more_is_a_loss() -> None:
    assert drop(10.0, 10.5, "min") == pytest.approx(50.0)
    assert drop(0.9, 0.95, "max") == pytest.approx(-5.0)
    better = pick(Row("float", 10.0, 9.0, 1.0, 1.0), Row("int8", 9.99, 1.0, 1.0, 1.0), mode="min")
    assert better.name == "int8"
    assert "gains 1.00 points" in better.reason


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UserError, match=r"compress\.target\.metric: 'speed' is unknown; known: latency_p50_ms"):
        pick(FLOAT, target="speed")
