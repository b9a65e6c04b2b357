"""The table of what a cleaning found: `findings.parquet`, a line for each finding of a rule and for each file that ingest refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.sample import SPLITS
from ..curate.refused import kind_of
from ..curate.rules import COPIES, NONE, Found, Seen, Setting, Verdict
from ..data.dataset import Dataset
from .purge_plan import lines, refusal

if TYPE_CHECKING:
    import pyarrow as pa

FINDINGS = "findings.parquet"


def findings(
    seen: Seen,
    hashed: np.ndarray,
    verdict: Verdict,
    chosen: Mapping[str, Setting],
    classes: list[str],
    refused: Sequence[Mapping[str, str]] = (),
) -> pa.Table:
    """row_id, split, rule, score, policy, other_row_id, label, new_label, source, found_by. Files that ingest refused have no row_id: their
    `source` says which they are. `hashed`: N bool, rows in a pair that the hash has found."""
    import pyarrow as pa

    facts = seen.facts

    def named(labels: np.ndarray) -> list[str | None]:
        return [classes[k] if 0 <= k < len(classes) else None for k in labels.tolist()]

    tables = []
    for name, found in verdict.found.items():
        rows, others = found.rows, found.others
        tables.append(
            pa.table({
                "row_id": facts.row_id[rows],
                "split": pa.array([SPLITS[k] for k in facts.split[rows]], pa.string()),
                "rule": pa.array([name] * len(rows), pa.string()),
                "score": found.scores,
                "policy": pa.array([chosen[name].policy] * len(rows), pa.string()),
                "other_row_id": pa.array(np.where(others == NONE, -1, facts.row_id[others]), mask=others == NONE),
                "label": pa.array(named(facts.label[rows]), pa.string()),
                "new_label": pa.array(named(found.labels), pa.string()),
                "source": pa.nulls(len(rows), pa.string()),
                "found_by": pa.array(_found_by(seen, hashed, found) if name in COPIES else [None] * len(rows), pa.string()),
            })
        )  # fmt: skip
    if refused:
        count = len(refused)
        tables.append(
            pa.table({
                "row_id": pa.nulls(count, pa.int64()),
                "split": pa.array([each["split"] for each in refused], pa.string()),
                "rule": pa.array([kind_of(each["reason"]) for each in refused], pa.string()),
                "score": np.ones(count, np.float32),
                "policy": pa.array(["quarantine"] * count, pa.string()),
                "other_row_id": pa.nulls(count, pa.int64()),
                "label": pa.nulls(count, pa.string()),
                "new_label": pa.nulls(count, pa.string()),
                "source": pa.array([each["source"] for each in refused], pa.string()),
                "found_by": pa.nulls(count, pa.string()),
            })
        )  # fmt: skip
    return pa.concat_tables(tables)


def _found_by(seen: Seen, hashed: np.ndarray, found: Found) -> list[str]:
    """How a copy was found: `equal` (bytes or pixels), `hash` (a pair of the hash names it), or else `embedding`."""
    equal = seen.equal[found.rows] == seen.equal[found.others]
    return np.where(equal, "equal", np.where(hashed[found.rows], "hash", "embedding")).tolist()


def refused(dataset: Dataset) -> list[dict[str, str]]:
    """The files that an ingest refused: `source`, `split`, `reason`; none where the data set is a cleaned one's."""
    artifact = dataset.artifact
    names = [name for name in artifact.storage.names(artifact.path("quarantine")) if name.endswith(".jsonl")]
    uris = (artifact.path("quarantine", name) for name in sorted(names))
    return [refusal(line) for uri in uris for line in lines(artifact.storage, uri)]


def encoded(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
