"""serve: a model artifact → an HTTP endpoint on the connected Ray cluster, and the configuration to deploy it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from ..core.artifact import Artifact, digest
from ..core.page import Page
from ..core.stage import Done, Job
from ..serving.options import Options


class Serve:
    name: ClassVar[str] = "serve"
    about: ClassVar[str] = "deploy the model behind HTTP with Ray Serve"
    answers: ClassVar[bool] = True
    always: ClassVar[bool] = True
    """A complete artifact says how to serve, not that it is being served: asked again, the stage deploys again."""

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"serve": recipe.serve.model_dump(mode="json"), "name": recipe.serve.name or default_name(recipe.name)}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        compressed = recipe.serve.model == "compress" and recipe.compress is not None
        return {"model": ("compress" if compressed else "train", {})}

    def ready(self, recipe: Any, options: Mapping[str, Any]) -> None:
        """UserError when the port cannot be had."""
        from .serve_deploy import check_port

        if options.get("deploy") is not False:
            check_port(recipe.serve.host, recipe.serve.port)

    def run(self, job: Job) -> Done:
        """Write `serve.yaml`, deploy, and come back once the endpoint answers with this model.

        Options: `deploy: False` only writes the configuration; `patience_s`: seconds to wait for free CPUs.
        """
        recipe, model = job.recipe, job.parents["model"]
        options = serving_options(recipe, model)
        text = yaml.safe_dump(configuration(recipe, options), sort_keys=False)
        job.artifact.write(text.encode(), "serve.yaml")
        job.artifact.write_json(
            {"artifact": model.uri, "identity": model.identity(), **model.read_json("variant.json")}, "served.json"
        )
        done = digest(text.encode(), json.dumps(model.identity()).encode())
        if job.options.get("deploy") is False:
            return Done({"name": options.name}, done)

        from .serve_deploy import deploy

        url, ingress = deploy(
            options, job.storage, recipe.serve.host, recipe.serve.port, float(job.options.get("patience_s", 60))
        )
        job.say(f"serve: {options.name} answers at {url}:predict")
        job.artifact.write(_page(job, url, text).html().encode(), "report.html")
        return Done({"url": url, "ingress": ingress, "precision": model.read_json("variant.json")["precision"]}, done)


def default_name(recipe: str) -> str:
    """A recipe's name as a model's name in a URL."""
    return (
        "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in recipe.lower()).strip("-") or "model"
    )


def serving_options(recipe: Any, model: Artifact) -> Options:
    serve, storage = recipe.serve, recipe.storage
    return Options.of({
        "artifact": model.uri, "answers": dict(model.answers), "name": serve.name or default_name(recipe.name),
        "storage": storage.model_dump(include={"endpoint_url", "region", "anonymous", "retries"}),
        **serve.model_dump(include=set(Options.model_fields) - {"artifact", "answers", "name", "storage"}),
    })  # fmt: skip


def configuration(recipe: Any, options: Options) -> dict[str, Any]:
    """What `serve deploy` takes, without a secret: the storage's keys are the replicas' environment's."""
    from ray.serve.schema import ServeDeploySchema

    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": recipe.serve.host, "port": recipe.serve.port},
        "applications": [
            {
                "name": f"mapsto-{options.name}", "route_prefix": "/", "import_path": "mapsto.serving.app:build",
                "args": options.model_dump(mode="json", exclude_none=True),
            }
        ],
    }  # fmt: skip
    ServeDeploySchema.model_validate(config)
    return config


def _page(job: Job, url: str, text: str) -> Page:
    variant = job.parents["model"].read_json("variant.json")
    page = Page(
        f"{job.recipe.name}: serve", f"{variant['kind']}, {variant['precision']}, from {job.parents['model'].uri}"
    )
    token = ' -H "Authorization: Bearer $TOKEN"' if job.recipe.serve.token_env else ""
    page.text("Ask it:")
    page.code(f"curl{token} --data-binary @image.jpg {url}:predict\ncurl{token} {url}")
    page.text("Deploy it again, on this cluster or another:")
    page.code(f"serve deploy serve.yaml\n\n{text}")
    return page
