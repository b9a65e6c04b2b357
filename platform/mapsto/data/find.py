"""Rows of a data set by their `row_id`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.sample import Sample
from .dataset import SplitIndex, read_group


def find(index: SplitIndex, row_ids: Sequence[int], columns: Sequence[str]) -> list[Sample]:
    """The samples with these ids, in their order; reads the small `row_id` column first, then only the groups needed.

    Raises KeyError for an id that the split does not hold.
    """
    wanted = {int(row): place for place, row in enumerate(row_ids)}
    found: dict[int, Sample] = {}
    for number in range(len(index.groups)):
        if len(found) == len(wanted):
            break
        ids = read_group(index, number, ["row_id"])["row_id"].to_numpy()
        hits = np.flatnonzero(np.isin(ids, list(wanted)))
        if len(hits):
            rows = read_group(index, number, [*columns, "row_id"]).take(hits).to_pylist()
            found |= {wanted[row["row_id"]]: row for row in rows}
    missing = set(wanted.values()) - set(found)
    if missing:
        raise KeyError(f"no rows with ids {sorted(int(row_ids[m]) for m in missing)[:5]} in split {index.name}")
    return [found[place] for place in range(len(row_ids))]
