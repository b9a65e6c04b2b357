"""Predictions from a served endpoint: bounded concurrency, order kept, retries while it is full."""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from ..core.errors import UserError

Key = TypeVar("Key")


@dataclass
class Client:
    """One served model. `url`: `http://host:port`, or the model's own `.../v1/models/{name}`."""

    url: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    retries: int = 8
    """Further tries after 503, waiting as long as the endpoint asks."""
    concurrency: int = 8

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/").removesuffix(":predict")
        self._session = requests.Session()
        self._session.mount("http", HTTPAdapter(pool_maxsize=self.concurrency))
        if self.token:
            self._session.headers["Authorization"] = f"Bearer {self.token}"

    def model(self) -> dict[str, Any]:
        """The model's description; finds its name when the URL has none. UserError when nothing answers there."""
        found = self._get(self.url if "/v1/models/" in self.url else f"{self.url}/v1/models")
        if "models" in found:
            (found,) = found["models"]
            self.url = f"{self.url}/v1/models/{found['name']}"
        return found

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request's fields (`image`: encoded bytes; others as they are) → its prediction, pictures as base64.

        Raises UserError with the endpoint's own line for what it refuses.
        """
        if set(request) == {"image"}:
            return self._post(data=request["image"], headers={"Content-Type": "application/octet-stream"})
        plain = {k: {"b64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in request.items()}
        return self._post(json={"instances": [plain]})

    def predict_all(
        self, items: Iterable[tuple[Key, Callable[[], Mapping[str, Any]]]]
    ) -> Iterator[tuple[Key, dict[str, Any] | UserError]]:
        """(key, what makes the request) → (key, prediction or what was refused), in order; at most `concurrency` are
        under way, the making of the requests (reading a file) included."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            under_way: deque[tuple[Key, Future[dict[str, Any]]]] = deque()
            for key, make in items:
                if len(under_way) >= 2 * self.concurrency:
                    yield _result(*under_way.popleft())
                under_way.append((key, pool.submit(lambda make=make: self.predict(make()))))
            while under_way:
                yield _result(*under_way.popleft())

    def _post(self, **body: Any) -> dict[str, Any]:
        for attempt in range(self.retries + 1):
            response = self._send("POST", f"{self.url}:predict", **body)
            if response.status_code != 503 or attempt == self.retries:
                break
            asked = response.headers.get("Retry-After", "")
            time.sleep(float(asked) if asked.isdecimal() else min(0.25 * 2**attempt, 5.0))
        return _document(response)["predictions"][0]

    def _get(self, url: str) -> dict[str, Any]:
        return _document(self._send("GET", url))

    def _send(self, method: str, url: str, **body: Any) -> requests.Response:
        try:
            return self._session.request(method, url, timeout=self.timeout_s, **body)
        except (
            requests.exceptions.MissingSchema,
            requests.exceptions.InvalidSchema,
            requests.exceptions.InvalidURL,
        ) as error:
            raise UserError(f"{url}: no URL of an endpoint; give http://host:port") from error
        except requests.exceptions.Timeout as error:
            raise UserError(f"{url}: no answer within {self.timeout_s:g} s") from error
        except requests.exceptions.RequestException as error:
            raise UserError(
                f"{url}: the endpoint cannot be reached; is the model served there? ({type(error).__name__})"
            ) from error


def _result(key: Key, future: Future[dict[str, Any]]) -> tuple[Key, dict[str, Any] | UserError]:
    try:
        return key, future.result()
    except UserError as error:
        return key, error


def _document(response: requests.Response) -> dict[str, Any]:
    """The JSON answer; UserError with the endpoint's line for any other status."""
    try:
        document = response.json()
    except ValueError:
        document = {
            "error": response.text.strip().splitlines()[0][:200] if response.text.strip() else "an empty answer"
        }
    if response.status_code != 200 or not isinstance(document, dict):
        message = document.get("error", "") if isinstance(document, dict) else "not an answer of mapsto's"
        raise UserError(f"{response.url}: {response.status_code} {message}")
    return document
