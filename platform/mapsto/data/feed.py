"""Microbatch number → batch: read, decode, augment and collate in one piece. Runs in Ray tasks; imports no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core.artifact import digest
from ..core.batches import Together
from ..core.errors import UserError
from ..core.sample import Batch, Sample, Split
from ..core.task import Stream, Task
from .dataset import Dataset, SplitIndex
from .execution import hush
from .kept import Kept, image
from .order import StreamPlan
from .plan import Draws, Pass, Plan
from .shard_cache import cached_group

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_GROUPS = 256
"""Row groups that a process keeps mapped."""
HELD_BYTES = 2**28
"""Memory for those that the node's disk has no room for, in each process: one of them stays, whatever its size."""

Streams = Mapping[str, tuple[Stream, SplitIndex]]


@dataclass(frozen=True)
class Feed:
    """Makes microbatches of a plan. Picklable; a process unpickles each feed once, however many tasks it runs."""

    task: Task
    streams: Mapping[Split, Streams]
    """Split → stream name → the stream and where its rows lie. A split without rows is absent."""
    plan: Plan | None = None
    kept: Kept | None = None
    """What nodes keep of the training split's images; None: what the shards hold."""

    @staticmethod
    def of(
        task: Task,
        datasets: Mapping[str, Dataset],
        splits: tuple[Split, ...] = ("train", "val", "test"),
        kept: Kept | None = None,
    ) -> Feed:
        """The feed of a task over its data sets (role → data set). Raises UserError for a role without a data set or
        a training split without rows."""
        found = {split: _streams(task, datasets, split, split) for split in splits}
        if "train" in found and found["train"] is None:
            where = ", ".join(d.artifact.uri for d in datasets.values())
            raise UserError(f"{where}: the train split has no images")
        return Feed(task, {split: streams for split, streams in found.items() if streams is not None}, kept=kept)

    @staticmethod
    def evaluating(task: Task, datasets: Mapping[str, Dataset], split: Split) -> Feed:
        """The feed that measures a split, the training one too, without augmentation (the streams of `test`)."""
        streams = _streams(task, datasets, "test" if split == "train" else split, split)
        if streams is None:
            raise UserError(f"{', '.join(d.artifact.uri for d in datasets.values())}: the {split} split has no images")
        return Feed(task, {split: streams})

    def follow(self, plan: Plan) -> Feed:
        return replace(self, plan=plan)

    def over(self, split: Split, batch_size: int, seed: int = 0) -> Feed:
        """One pass over a split, in order, in microbatches of `batch_size` rows."""
        if split not in self.streams:
            raise UserError(f"the {split} split has no images")
        streams = dict(self.streams[split])
        first, (stream, index) = next(iter(streams.items()))
        streams[first] = (replace(stream, sampling="sequential"), index)
        plans = tuple(StreamPlan.of(name, stream, index) for name, (stream, index) in streams.items())
        return self.follow(Pass(plans, batch_size, seed=seed, split=split))

    def batch(self, g: int) -> Batch:
        """Microbatch g: what `task.collate` gives, `row_id` (N int64, -1 for padding) and `valid` (N bool).

        With several streams the names carry the stream's (`style.image`); `row_id` and `valid` are the first one's.
        Raises UserError for rows that cannot be decoded, RuntimeError for those that a transform fails on; both name the row.
        """
        assert self.plan is not None, "follow(plan) first"
        split = self.plan.item(g).split
        streams, how = self.streams[split], self.kept if split == "train" else None
        parts = {name: self._collated(name, *streams[name], draws, how) for name, draws in self.plan.draws(g).items()}
        first = next(iter(parts.values()))
        if len(parts) == 1:
            return first
        named = {f"{name}.{column}": value for name, part in parts.items() for column, value in part.items()}
        return named | {"row_id": first["row_id"], "valid": first["valid"]}

    def _collated(self, name: str, stream: Stream, index: SplitIndex, draws: Draws, how: Kept | None) -> Batch:
        assert self.plan is not None
        columns = tuple(dict.fromkeys([*stream.columns, "row_id"]))
        key = np.array([self.plan.seed, StreamPlan.key_of(name)], np.uint64)
        dice = Dice(key)
        samples, ids, together = [], np.full(len(draws), -1, np.int64), Together(len(draws))
        for k, row in enumerate(draws.rows):
            drawn = [_row(index, int(r), columns, how) for r in (row, *draws.partners[k])]
            row_id = drawn[0]["row_id"]
            try:
                sample = stream.transform(drawn, dice.at(int(draws.epochs[k]), row_id, int(draws.draw[k])))
            except UserError as error:
                raise UserError(f"{index.name} row {row_id}: {error}") from error
            except Exception as error:
                raise RuntimeError(f"{index.name} row {row_id}: {type(error).__name__}: {error}") from error
            sample.pop("row_id", None)
            samples.append(together.put(k, sample))
            ids[k] = row_id if draws.valid[k] else -1
        return self.task.collate(samples) | {"row_id": ids, "valid": draws.valid}

    def __reduce__(self) -> tuple[Any, ...]:
        from ray import cloudpickle

        payload = cloudpickle.dumps((self.task, self.streams, self.plan, self.kept))
        return _restore, (digest(payload), payload)


_restored: OrderedDict[str, Feed] = OrderedDict()


def _restore(key: str, payload: bytes) -> Feed:
    from ray import cloudpickle

    if key not in _restored:
        hush()
        cv2.setNumThreads(1)  # a task has one core
        _restored[key] = Feed(*cloudpickle.loads(payload))
        while len(_restored) > 4:
            _restored.popitem(last=False)
    return _restored[key]


class Dice:
    """Generators by counter: one Philox, set to its own place for every draw (25 µs quicker than a new one)."""

    def __init__(self, key: np.ndarray) -> None:
        self._bits = np.random.Philox(key=key)
        self._state: Any = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, epoch: int, row_id: int, draw: int) -> np.random.Generator:
        """The generator of a draw; valid until the next call."""
        self._state["state"]["counter"][:] = (0, 1000 + draw, row_id, epoch)
        self._state["buffer_pos"], self._state["has_uint32"] = 4, 0
        self._bits.state = self._state
        return self._generator


def _streams(task: Task, datasets: Mapping[str, Dataset], asked: Split, read: Split) -> Streams | None:
    """The task's streams for one split; None when the first stream's split has no rows."""
    out: dict[str, tuple[Stream, SplitIndex]] = {}
    for name, stream in task.streams(asked).items():
        if stream.role not in datasets:
            raise UserError(f"the task reads data.{stream.role}, which the recipe does not have")
        dataset = datasets[stream.role]
        split = read if stream.split == asked else stream.split
        if split not in dataset.manifest["splits"]:
            if out:
                raise UserError(
                    f"{dataset.artifact.uri}: data.{stream.role} has no {split} split, which stream {name} reads"
                )
            return None
        have = dataset.manifest["columns"]
        needed = (*stream.columns, *((stream.by,) if stream.sampling in ("balanced", "weighted", "identities") else ()))
        missing = [c for c in needed if c not in have]
        if missing:
            raise UserError(
                f"{dataset.artifact.uri}: data.{stream.role} has no {missing[0]}, which the task needs; it has {', '.join(have)}"
            )
        out[name] = (stream, dataset.split(split))
    return out or None


class Groups:
    """The row groups that a process has at hand; the one that was not used for longest goes first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Any, tuple[dict[str, pa.Array], int]] = OrderedDict()
        self._held = 0

    def get(self, key: Any, read: Callable[[], tuple[pa.Table, int]]) -> dict[str, pa.Array]:
        """The columns of a group; `read` brings it, and the bytes of memory that it holds."""
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key][0]
        table, held = read()
        group = {name: table.column(name).chunk(0) for name in table.column_names}
        self._open[key] = group, held
        self._held += held
        while len(self._open) > OPEN_GROUPS or (self._held > HELD_BYTES and held and len(self._open) > 1):
            self._held -= self._open.popitem(last=False)[1][1]
        return group


_groups = Groups()


def _row(index: SplitIndex, row: int, columns: tuple[str, ...], how: Kept | None) -> Sample:
    number = int(np.searchsorted(index.starts, row, side="right")) - 1
    file, inner = index.group(number)
    how = how if "image" in columns else None
    key = (file.uri + file.sha256, inner, columns, how)
    group = _groups.get(key, lambda: cached_group(index, number, columns, how))
    offset = row - int(index.starts[number])
    if how is None or how.quality is not None:
        return {name: values[offset].as_py() for name, values in group.items()}
    sample = {name: values[offset].as_py() for name, values in group.items() if name != "image"}
    return sample | {"image": image(group, offset)}
