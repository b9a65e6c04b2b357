"""An artifact: a directory at a URI with its recipe, payload, metrics and lineage; `artifact.json` is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .errors import UserError
from .storage import Storage, join

FORMAT_VERSION = 1
WORK = "work"
"""The folder of an artifact that a stage keeps what it needs to go on with in, until the artifact is finished."""


@dataclass(frozen=True)
class Artifact:
    """The directory `root/name/stage/fingerprint`. It counts once `artifact.json` is there; `started.json` without it
    is an interrupted run that the stage may resume."""

    uri: str
    storage: Storage
    answers: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Of a model that a recipe uses: how it is to answer, the recipe's settings in place of those it was trained with
    (TaskConfig.answers). Told by who opens it, and not kept in it."""

    def path(self, *parts: str) -> str:
        return join(self.uri, *parts)

    @property
    def stage(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 2)[-2]

    @property
    def fingerprint(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def complete(self) -> bool:
        return self.storage.exists(self.path("artifact.json"))

    def started(self) -> bool:
        return self.storage.exists(self.path("started.json"))

    def meta(self) -> dict[str, Any]:
        """`artifact.json`: stage, fingerprint, digest, section, parents, metrics, created. UserError when it is not
        complete, or of another format."""
        if not self.complete():
            raise UserError(f"{self.uri}: no finished artifact here (artifact.json is missing)")
        meta = self.storage.read_json(self.path("artifact.json"))
        if meta["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{self.uri}: format {meta['format_version']}, this mapsto reads {FORMAT_VERSION}; make it anew with --force"
            )
        return meta

    def identity(self) -> str:
        """Fingerprint and content: what a child's fingerprint covers, so that new content under an old address
        (`--force`) makes new children."""
        return f"{self.fingerprint}:{self.meta()['digest']}"

    def begin(self, recipe: Mapping[str, Any], section: Mapping[str, Any], parents: Mapping[str, Artifact]) -> None:
        self.storage.write_json(self.path("recipe.json"), recipe)
        self.storage.write_json(
            self.path("started.json"),
            {"section": section, "parents": {k: v.uri for k, v in parents.items()}, "started": _now()},
        )

    def finish(
        self, *, section: Mapping[str, Any], parents: Mapping[str, Artifact], metrics: Mapping[str, Any], digest: str
    ) -> None:
        """Declare the artifact complete, then remove `work/`: killed in between, it is complete, and `gc` removes the rest.
        `digest`: a hash of the payload's content."""
        self.storage.write_json(
            self.path("artifact.json"),
            {
                "format_version": FORMAT_VERSION,
                "stage": self.stage,
                "fingerprint": self.fingerprint,
                "digest": digest,
                "section": section,
                "metrics": metrics,
                "created": _now(),
                "parents": {k: {"uri": v.uri, "identity": v.identity()} for k, v in parents.items()},
            },
        )
        self.storage.delete(self.path(WORK))

    def remove(self) -> None:
        """Delete it whole: first what says that it is complete, then what a run would go on with, so that one that was killed
        within neither counts nor is resumed from a part."""
        for name in ("artifact.json", WORK, ""):
            self.storage.delete(self.path(name) if name else self.uri)

    def read_json(self, *parts: str) -> Any:
        return self.storage.read_json(self.path(*parts))

    def write_json(self, value: Any, *parts: str) -> None:
        self.storage.write_json(self.path(*parts), value)

    def read(self, *parts: str) -> bytes:
        return self.storage.read(self.path(*parts))

    def write(self, data: bytes, *parts: str, sha256: str | None = None) -> None:
        self.storage.write(self.path(*parts), data, sha256)


def fingerprint(section: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """16 hex digits over the section, the parents' identities and the format version."""
    return digest(json.dumps([FORMAT_VERSION, section, parents], sort_keys=True, default=str).encode())


def digest(*parts: bytes) -> str:
    """16 hex digits of SHA-256 over the parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
