"""Requests → lines of `predictions.jsonl`, by a model in this process or by an endpoint; pictures go to files beside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from ..core import codecs
from ..core.artifact import Artifact
from ..core.errors import BrokenModel, UserError
from ..core.sample import Geometry, Prediction, Sample
from ..core.storage import Storage
from ..core.task import Task
from . import protocol
from .client import Client
from .runtimes import Runtime, each_answer

READERS = 8


@dataclass(frozen=True)
class Asked:
    """One thing to predict: a file to read, or a request as it is."""

    number: int
    """Its place in the listing, from 0."""
    uri: str | None = None
    """Of its `image`."""
    request: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Names in the request whose values are files to read, too."""

    def fetch(self, storage: Storage) -> dict[str, Any]:
        image = {"image": storage.read(self.uri)} if self.uri is not None else {}
        return {**{k: storage.read(v) if k in self.files else v for k, v in self.request.items()}, **image}

    @property
    def stem(self) -> str:
        name = (
            PurePosixPath(self.uri).stem
            if self.uri is not None
            else "-".join(f"{k}{v}" for k, v in self.request.items() if k not in self.files)
        )
        return f"{self.number:06d}-{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)[:60]}"

    def line(self, **answer: Any) -> Line:
        asked = {"request": dict(self.request)} if self.request else {}
        return {**({"uri": self.uri} if self.uri is not None else {}), **asked, **answer}


Line: TypeAlias = dict[str, Any]
"""`uri` (or `request`, or both) with either `prediction` or `error`; `picture` where the task draws one."""


@dataclass
class Predictor:
    """Runs batches of requests through a runtime; one that cannot be read, decoded or answered becomes a line with its error."""

    runtime: Runtime
    storage: Storage
    out: Artifact

    def __call__(self, asked: Sequence[Asked]) -> list[Line]:
        with ThreadPoolExecutor(READERS) as pool:
            prepared = list(pool.map(self._prepare, asked))
        good = [one for one in prepared if not isinstance(one, UserError)]
        answers = iter(each_answer(self.runtime, good))
        return [
            one.line(error=str(what)) if isinstance(what, UserError) else self._line(one, what[0], next(answers))
            for one, what in zip(asked, prepared, strict=True)
        ]

    def _prepare(self, asked: Asked) -> tuple[Sample, Geometry] | UserError:
        try:
            return self.runtime.task.prepare(protocol.within_limits(asked.fetch(self.storage)))
        except UserError as error:
            return error

    def _line(self, asked: Asked, sample: Sample, prediction: Prediction | BrokenModel) -> Line:
        if isinstance(prediction, BrokenModel):
            return asked.line(error=str(prediction))
        files = {name: codecs.encode(value, "png") for name, value in prediction.items() if protocol.is_picture(value)}
        values = {name: protocol.plain(value) for name, value in prediction.items() if name not in files}
        drawn = (
            {"picture": codecs.encode(self.runtime.task.render(sample, prediction), "png")}
            if draws(self.runtime.task)
            else {}
        )
        return _written(asked, values, {**files, **drawn}, self.out)


def ask(client: Client, asked: Iterator[Asked], storage: Storage, out: Artifact) -> Iterator[Line]:
    """The same by an endpoint, in order."""

    def fetcher(one: Asked) -> Callable[[], Mapping[str, Any]]:
        return lambda: one.fetch(storage)

    for one, answer in client.predict_all((one, fetcher(one)) for one in asked):
        if isinstance(answer, UserError):
            yield one.line(error=str(answer))
            continue
        files = {k: base64.b64decode(v["b64"]) for k, v in answer.items() if isinstance(v, dict) and "b64" in v}
        yield _written(one, {k: v for k, v in answer.items() if k not in files}, files, out)


def draws(task: Task) -> bool:
    """Whether the answers are pictures: what `render` makes of them is kept, too."""
    return any(output.kind in ("mask", "image", "boxes") for output in task.signature().outputs)


def _written(asked: Asked, values: dict[str, Any], files: Mapping[str, bytes], out: Artifact) -> Line:
    """Pictures as files below `pictures/`, their names in place of their values."""
    names = {name: f"pictures/{asked.stem}{'' if name == 'picture' else f'.{name}'}.png" for name in files}
    for name, data in files.items():
        out.write(data, names[name])
    drawn = {"picture": names.pop("picture")} if "picture" in names else {}
    return asked.line(prediction={**values, **names}, **drawn)
