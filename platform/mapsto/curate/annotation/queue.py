"""The order in which people look at rows: by a score of each, from a file of JSON lines or from what `mapsto clean` found."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping

from ...core.errors import UserError


def read_scores(data: bytes, where: str) -> dict[int, float]:
    """`{"row_id": 12, "score": 0.7}` a line → row id → score. Raises UserError, with file and line, for what is none, a
    score that is no finite number, and a row that comes twice."""
    scores: dict[int, float] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            row_id, score = entry["row_id"], entry["score"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{where}:{number}: each line is {{"row_id": 12, "score": 0.7}}') from error
        if not isinstance(row_id, int) or isinstance(row_id, bool):
            raise UserError(f"{where}:{number}: row_id {row_id!r} is no whole number")
        if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
            raise UserError(f"{where}:{number}: score {score!r} is no finite number")
        if row_id in scores:
            raise UserError(f"{where}:{number}: row {row_id} comes twice")
        scores[row_id] = float(score)
    if not scores:
        raise UserError(f"{where}: no scores in it")
    return scores


def read_findings(data: bytes, where: str, rule: str | None) -> dict[int, float]:
    """The table `findings.parquet` of a cleaning → row id → score of the rows that a rule found. Raises UserError for a table that
    is none, for several rules where none is named (their units differ), and a rule that found nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data), columns=["row_id", "rule", "score"])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{where}: not a table of findings, with row_id, rule and score") from error
    table = table.filter(table["row_id"].is_valid())  # files that ingest refused are no rows
    rules = sorted(set(table["rule"].to_pylist()))
    if rule is None and len(rules) > 1:
        raise UserError(f"{where}: has findings of several rules; name one with --rule: {', '.join(rules)}")
    if not rules or (rule is not None and rule not in rules):
        have = ", ".join(rules) or "none"
        raise UserError(f"{where}: no findings of {rule or 'any rule'}; it has {have}")
    scores: dict[int, float] = {}
    for row in table.to_pylist():
        if row["rule"] == (rule or rules[0]):
            scores[row["row_id"]] = max(float(row["score"]), scores.get(row["row_id"], -math.inf))
    return scores


def queue(scores: Mapping[int, float], limit: int | None = None, *, lowest: bool = False) -> list[int]:
    """Row ids, the highest score first (with `lowest` the lowest), equal ones by row id; at most `limit`."""
    order = sorted(scores, key=lambda row_id: (scores[row_id] if lowest else -scores[row_id], row_id))
    return order[:limit]
