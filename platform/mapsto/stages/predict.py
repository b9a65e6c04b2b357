"""predict: a model's answers for a file, a folder, an S3 prefix, or seeds; nothing that was listed is lost."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..core.artifact import Artifact
from ..core.errors import UserError, nearest
from ..core.registry import load_task
from ..core.stage import Done, Job
from ..core.storage import absolute, join
from ..serving.client import Client
from ..serving.predictor import Asked, Line, Predictor, ask
from ..serving.runtimes import open_runtime

IN_PROCESS = 64
"""Fewer requests than this are answered here, without Ray."""
ROWS_AT_ONCE = 16
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")


class Predict:
    """Options: `inputs` (a URI, or several), `output` (a local path to copy the result to), `endpoint` (the URL of a
    served model, instead of this recipe's), `model` (`train` or `compress`; default: what is served), `fields` (further
    inputs that go with every image, name → value; an image's is its URI), and for a task without input image `count` and
    `seed`."""

    name: ClassVar[str] = "predict"
    about: ClassVar[str] = "the model's answers for a file, a folder, an S3 prefix, or by an endpoint"
    always: ClassVar[bool] = True
    """A folder may hold other files than last time."""

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "inputs": [absolute(uri) for uri in uris(options)], "endpoint": options.get("endpoint"),
            "count": int(options.get("count") or 0), "seed": int(options.get("seed") or 0),
            **({"fields": dict(options["fields"])} if options.get("fields") else {}),
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
                for line in lines:
                    text = json.dumps(line, ensure_ascii=False) + "\n"
                    file.write(text)
                    total.update(text.encode())
                    rows, errors = rows + 1, errors + ("error" in line)
            if not rows:
                raise UserError(
                    f"{', '.join(job.section['inputs'])}: no images here; known suffixes: {', '.join(SUFFIXES)}"
                )
            job.storage.upload(path, job.artifact.path("predictions.jsonl"))
        if errors:
            job.say(f"predict: {errors} of {rows} could not be answered; predictions.jsonl says why for each")
        if job.options.get("output"):
            job.say(f"predict: copied to {copy_out(job.artifact, Path(job.options['output']))}")
        return Done({"rows": rows, "errors": errors}, total.hexdigest()[:16])

    def _by_endpoint(self, job: Job) -> Iterator[Line]:
        variable = job.recipe.serve.token_env
        client = Client(job.section["endpoint"], os.environ.get(variable) if variable else None)
        kinds = {field["name"]: field["kind"] for field in client.model()["inputs"]}
        return ask(client, listing(job, kinds), job.storage, job.artifact)

    def _by_model(self, job: Job) -> Iterator[Line]:
        model = job.parents["model"]
        asked = listing(job, {field.name: field.kind for field in load_task(model).signature().inputs})
        first = list(itertools.islice(asked, IN_PROCESS))
        if len(first) < IN_PROCESS:
            predictor = Predictor(open_runtime(model, threads=os.cpu_count() or 1), job.storage, job.artifact)
            return (line for part in chunks(first, ROWS_AT_ONCE) for line in predictor(part))
        from .predict_many import predict_many

        return predict_many(model, itertools.chain(first, asked), job)


def uris(options: Mapping[str, Any]) -> list[str]:
    inputs = options.get("inputs") or []
    return [inputs] if isinstance(inputs, str) else list(inputs)


def listing(job: Job, kinds: Mapping[str, str]) -> Iterator[Asked]:
    """What to predict, streamed; `kinds`: the task's inputs by name. UserError when it needs other options than those
    given."""
    inputs, count, seed = job.section["inputs"], job.section["count"], job.section["seed"]
    if "image" in kinds.values():
        if not inputs:
            raise UserError("predict: which images? give a file, a folder or an s3:// prefix")
        plain, files = _fields(job.section.get("fields", {}), kinds)
        return (Asked(number, uri, plain, files) for number, uri in enumerate(_files(job, inputs)))
    if inputs:
        raise UserError(
            f"predict: this task has no input image, so {inputs[0]} cannot be used; give --count and --seed"
        )
    return (Asked(number, request={"seed": seed + number}) for number in range(count or 1))


def _fields(given: Mapping[str, str], kinds: Mapping[str, str]) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Further inputs of every request: the values, and the URIs of images."""
    for name in given:
        if name not in kinds or name == "image":
            others = [other for other in kinds if other != "image"]
            raise UserError(f"predict: the model has no further input '{name}'{nearest(name, others)}")
    plain = {name: value for name, value in given.items() if kinds[name] != "image"}
    return plain or None, {name: absolute(uri) for name, uri in given.items() if kinds[name] == "image"}


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


def copy_out(artifact: Artifact, output: Path) -> Path:
    """`predictions.jsonl` to a file of that suffix, or it and the pictures into a folder."""
    if output.suffix == ".jsonl":
        artifact.storage.download(artifact.path("predictions.jsonl"), output)
        return output
    output.mkdir(parents=True, exist_ok=True)
    artifact.storage.download(artifact.path("predictions.jsonl"), output / "predictions.jsonl")
    shutil.rmtree(output / "pictures", ignore_errors=True)
    for name in artifact.storage.names(artifact.path("pictures")):
        artifact.storage.download(join(artifact.uri, "pictures", name), output / "pictures" / name)
    return output
