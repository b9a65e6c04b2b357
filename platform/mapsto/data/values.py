"""What a manifest says of a column `value`: how many rows have one, mean, standard deviation, least and largest, split by split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from .dataset import Dataset, read_group


def sums(values: Sequence[float]) -> list[float]:
    """How many, their mean, the sum of squared differences from it, the least and the largest; empty for none."""
    if not values:
        return []
    mean = statistics.fmean(values)
    return [len(values), mean, sum((value - mean) ** 2 for value in values), min(values), max(values)]


def joined(parts: Iterable[Sequence[float]]) -> dict[str, float]:
    """Of the `sums` of several parts: `rows`, `mean`, `std`, `min`, `max`; empty where none has a value (Chan, Golub and LeVeque,
    Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979)."""
    count, mean, squares, least, largest = 0.0, 0.0, 0.0, math.inf, -math.inf
    for part in parts:
        if part:
            n, m, s, low, high = part
            total, apart = count + n, m - mean
            squares += s + apart**2 * count * n / total
            mean += apart * n / total
            count, least, largest = total, min(least, low), max(largest, high)
    if not count:
        return {}
    return {"rows": count, "mean": mean, "std": math.sqrt(squares / count), "min": least, "max": largest}


def of_dataset(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Split → `joined` of all its rows, a row group at a time; of the column alone."""
    found = {}
    for split in dataset.manifest["splits"]:
        index = dataset.split(split)
        groups = (read_group(index, number, ["value"]).column("value") for number in range(len(index.groups)))
        found[split] = joined(sums(group.drop_null().to_pylist()) for group in groups)
    return found
