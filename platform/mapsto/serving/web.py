"""The HTTP application around one model: routes, limits, errors. It runs in the replica, one hop from the client."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..core.errors import BrokenModel, UserError
from ..core.sample import Geometry, Prediction, Sample
from . import protocol
from .batcher import Batcher
from .options import Options
from .runtimes import Runtime, each_answer

log = logging.getLogger("ray.serve")


class _Name(Convertor[str]):
    """A path part without a colon: what follows one is the verb."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("model", _Name())


class Web:
    """`app` is the ASGI application. UserError when `token_env` names a variable that is not set here."""

    def __init__(self, runtime: Runtime, options: Options) -> None:
        self.runtime, self.options = runtime, options
        self.task, self.signature = runtime.task, runtime.task.signature()
        self._token = _token(options.token_env)
        self._limit = int(options.max_body_mb * 1e6)
        self._preparing = 0
        self._decoders = ThreadPoolExecutor(max(2, round(options.cpus_per_replica)), "decode")
        self.batcher: Batcher[tuple[Sample, Geometry], Prediction] = Batcher(
            self._infer, options.max_batch_size, options.batch_wait_ms / 1e3, lambda: self._preparing
        )
        model = "/v1/models/{name:model}"
        self.app = Starlette(
            routes=[
                Route("/healthz", self._healthz, methods=["GET"]),
                Route("/v1/models", self._guarded(self._models), methods=["GET"]),
                Route(model, self._guarded(self._model), methods=["GET"]),
                Route(f"{model}:predict", self._guarded(self._predict), methods=["POST"]),
            ],
            exception_handlers={
                HTTPException: _http_error,
                BrokenModel: _broken_model,
                UserError: _user_error,
                ClientDisconnect: _gone,
            },
        )

    def close(self) -> None:
        self.batcher.close()
        self._decoders.shutdown(wait=False)

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Ask for the bearer token first, where there is one; the name of the model second."""

        async def guarded(request: Request) -> Response:
            if self._token is not None:
                given = request.headers.get("authorization", "")
                if not hmac.compare_digest(given.encode(), b"Bearer " + self._token):
                    raise HTTPException(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})
            name = request.path_params.get("name", self.options.name)
            if name != self.options.name:
                raise HTTPException(404, f"no model '{name}' here; served: {self.options.name}")
            try:
                return await handler(request)
            except (HTTPException, UserError, ClientDisconnect):
                raise
            except Exception as error:
                log.error("%s %s failed", request.method, request.url.path, exc_info=error)
                return _error(500, f"internal error ({type(error).__name__}); the replica's log has the traceback")

        return guarded

    async def _healthz(self, request: Request) -> Response:
        fingerprint = self.options.artifact.rstrip("/").rsplit("/", 1)[-1]
        return JSONResponse({"status": "ok", "model": self.options.name, "fingerprint": fingerprint})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"models": [self._description()]})

    async def _model(self, request: Request) -> Response:
        counts = self.batcher.counts
        return JSONResponse({**self._description(), "batches": counts.batches, "mean_batch": round(counts.mean, 2)})

    def _description(self) -> dict[str, Any]:
        classes = next((list(info.classes) for info in self.task.datasets.values() if info.classes), [])
        return {
            "name": self.options.name,
            "task": self.task.config.kind,
            "artifact": self.options.artifact,
            "variant": dict(self.runtime.variant),
            "classes": getattr(self.task.config, "classes", None) or classes,
            **protocol.describe(self.signature),
        }

    async def _predict(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self.options.timeout_s):
                body = await self._body(request)
                predictions = await self._answer(request.headers.get("content-type", ""), body)
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.options.timeout_s:g} s (timeout_s)") from error
        if request.headers.get("accept", "").startswith("image/png"):
            png = protocol.picture(predictions[0])
            if png is None:
                raise HTTPException(406, "this model answers without a picture; accept application/json")
            return Response(png, media_type="image/png")
        return Response(protocol.encode(predictions), media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        """The whole body; 413 from its announced length, or as soon as more has come than is allowed."""
        announced = request.headers.get("content-length", "0")
        too_large = HTTPException(413, f"the body is over the limit of {self.options.max_body_mb:g} MB (max_body_mb)")
        if announced.isdecimal() and int(announced) > self._limit:
            raise too_large
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._limit:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    async def _answer(self, content_type: str, body: bytes) -> list[Prediction]:
        loop = asyncio.get_running_loop()
        self._preparing += 1
        try:
            prepared = await loop.run_in_executor(self._decoders, self._prepare, content_type, body)
        finally:
            self._preparing -= 1
            self.batcher.nudge()
        return await self.batcher.submit(prepared)

    def _prepare(self, content_type: str, body: bytes) -> list[tuple[Sample, Geometry]]:
        requests = protocol.parse(content_type, body, self.signature)
        prepared = []
        for number, one in enumerate(requests):
            try:
                prepared.append(self.task.prepare(protocol.within_limits(one)))
            except UserError as error:
                raise UserError(f"{error}" if len(requests) == 1 else f"request {number}: {error}") from error
        return prepared

    def _infer(self, items: Sequence[tuple[Sample, Geometry]]) -> Sequence[Prediction | BrokenModel]:
        return each_answer(self.runtime, items)


def _token(variable: str | None) -> bytes | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UserError(f"serve.token_env: the environment variable {variable} is not set where the replica runs")
    return os.environ[variable].encode()


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, dict(headers or {}))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


async def _user_error(request: Request, error: Exception) -> Response:
    return _error(400, " ".join(str(error).split()))


async def _broken_model(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, error)
    return _error(500, str(error))


async def _gone(request: Request, error: Exception) -> Response:
    return _error(499, "the client went away")
