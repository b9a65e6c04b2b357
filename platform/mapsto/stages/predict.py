"""predict: a model's answers for a file, a folder, an S3 prefix, or seeds; nothing that was listed is lost."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..core.artifact import Artifact
from ..core.errors import UserError, nearest
from ..core.registry import load_task
from ..core.stage import Done, Job
from ..core.storage import absolute, join
from ..core.task import Field
from ..runtime.progress import bar
from ..serving.client import Client
from ..serving.predictor import Asked, Line, Predictor, ask
from ..serving.protocol import PICTURES
from ..serving.runtimes import open_runtime

IN_PROCESS = 64
"""Fewer requests than this are answered here, without Ray."""
ROWS_AT_ONCE = 16
SHOWN = 8
"""So many answers are said, too."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")


class Predict:
    """Options: `inputs` (a URI, or several), `output` (a path or URI to copy the result to), `endpoint` (the URL of a
    served model, instead of this recipe's), `model` (`train` or `compress`; default: what is served), for a task that needs no
    input image `count` and `seed`, and `fields` (name → value of further inputs, the same for every answer; for an image or
    a mask its URI)."""

    name: ClassVar[str] = "predict"
    about: ClassVar[str] = "the model's answers for a file, a folder, an S3 prefix, or by an endpoint"
    answers: ClassVar[bool] = True
    always: ClassVar[bool] = True
    """A folder may hold other files than last time."""

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "inputs": [absolute(uri) for uri in uris(options)], "endpoint": options.get("endpoint"),
            "count": int(options.get("count") or 0), "seed": int(options.get("seed") or 0),
            "fields": dict(options.get("fields") or {}),
        }  # fmt: skip

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        if options.get("endpoint"):
            return {}
        served = "train" if recipe.compress is None else recipe.serve.model
        return {"model": (options.get("model") or served, {})}

    def run(self, job: Job) -> Done:
        job.artifact.storage.delete(job.artifact.path("pictures"))
        lines = self._by_endpoint(job) if job.section["endpoint"] else self._by_model(job)
        rows = errors = 0
        total = hashlib.sha256()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "predictions.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for line in bar(lines, "predict: answers"):
                    if rows < SHOWN:
                        job.say(f"predict: {brief(line)}")
                    text = json.dumps(line, ensure_ascii=False) + "\n"
                    file.write(text)
                    total.update(text.encode())
                    rows, errors = rows + 1, errors + ("error" in line)
            if not rows:
                raise UserError(
                    f"{', '.join(job.section['inputs'])}: no images here; known suffixes: {', '.join(SUFFIXES)}"
                )
            job.storage.upload(path, job.artifact.path("predictions.jsonl"))
            output = job.options.get("output")
            where = copy_out(job.artifact, path, output) if output else job.artifact.path("predictions.jsonl")
        why = f"; it says why for the {errors} that could not be given" if errors else ""
        job.say(f"predict: {rows} answers in {where}{why}")
        return Done({"rows": rows, "errors": errors}, total.hexdigest()[:16])

    def _by_endpoint(self, job: Job) -> Iterator[Line]:
        variable = job.recipe.serve.token_env
        client = Client(job.section["endpoint"], os.environ.get(variable) if variable else None)
        inputs = [Field(**field) for field in client.model()["inputs"]]
        return ask(client, listing(job, inputs), job.storage, job.artifact)

    def _by_model(self, job: Job) -> Iterator[Line]:
        model = job.parents["model"]
        asked = listing(job, load_task(model).signature().inputs)
        first = list(itertools.islice(asked, IN_PROCESS))
        if len(first) < IN_PROCESS:
            predictor = Predictor(open_runtime(model, threads=os.cpu_count() or 1), job.storage, job.artifact)
            return (line for part in chunks(first, ROWS_AT_ONCE) for line in predictor(part))
        from .predict_many import predict_many

        return predict_many(model, itertools.chain(first, asked), job)


def uris(options: Mapping[str, Any]) -> list[str]:
    inputs = options.get("inputs") or []
    return [inputs] if isinstance(inputs, str) else list(inputs)


def listing(job: Job, inputs: Sequence[Field]) -> Iterator[Asked]:
    """What to predict, streamed. UserError when the task needs other options than those given."""
    uris, count, seed = job.section["inputs"], job.section["count"], job.section["seed"]
    image = next((field for field in inputs if field.name == "image"), None)
    if image is None and uris:
        raise UserError(f"predict: this task has no input image, so {uris[0]} cannot be used; give --count and --seed")
    if image is not None and image.required and not uris:
        raise UserError("predict: which images? give a file, a folder or an s3:// prefix")
    further, files = fields(job.section["fields"], inputs)
    if not uris:
        return (Asked(number, None, {"seed": seed + number, **further}, files) for number in range(count or 1))
    if any(field.name == "seed" and field.required for field in inputs):
        further = {"seed": seed, **further}
    return (Asked(number, uri, further, files) for number, uri in enumerate(_files(job, uris)))


def fields(given: Mapping[str, str], inputs: Sequence[Field]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Further inputs by name, in the types of their kinds, and the names of those that are files. UserError for what the
    task does not take."""
    kinds, out = {field.name: field.kind for field in inputs if field.name != "image"}, {}
    for name, value in given.items():
        if name not in kinds:
            raise UserError(f"predict: --with {name}: no input of this task{nearest(name, kinds)}")
        try:
            made = {"seed": int, "number": float}.get(kinds[name], str)(value)
        except ValueError as error:
            raise UserError(f"predict: --with {name}={value}: a {kinds[name]} is a number") from error
        out[name] = absolute(value) if kinds[name] in PICTURES else made
    return out, tuple(name for name in out if kinds[name] in PICTURES)


def _files(job: Job, inputs: Iterable[str]) -> Iterator[str]:
    skipped = 0
    for uri in inputs:
        if job.storage.exists(uri):
            yield uri
            continue
        for found, _ in job.storage.walk(uri):
            if found.lower().endswith(SUFFIXES):
                yield found
            else:
                skipped += 1
    if skipped:
        job.say(f"predict: {skipped} files have no image's suffix, and were left out")


def chunks(items: Iterable[Asked], size: int) -> Iterator[list[Asked]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def brief(line: Line) -> str:
    """An answer in a few words: its numbers and names, or else how many there are of what it lists."""
    asked = line.get("uri") or ", ".join(f"{name} {value}" for name, value in line["request"].items())
    if "error" in line:
        return f"{asked}: {line['error']}"
    found = {k: v for k, v in line["prediction"].items() if not isinstance(v, (list, dict))}
    words = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()]
    words = words or [f"{len(value)} {name}" for name, value in line["prediction"].items()]
    return f"{asked}: {', '.join(words)}"


def copy_out(artifact: Artifact, lines: Path, output: str) -> str:
    """The lines to a file of that suffix, or them and the pictures into a folder: a path, or a URI of any store. Returns
    where the lines are."""
    storage = artifact.storage
    if output.endswith(".jsonl"):
        storage.upload(lines, output)
        return output
    storage.upload(lines, join(output, "predictions.jsonl"))
    storage.delete(join(output, "pictures"))
    for name in storage.names(artifact.path("pictures")):
        storage.write(join(output, "pictures", name), artifact.read("pictures", name))
    return join(output, "predictions.jsonl")
