"""The artifacts under a root: `root/name/stage/fingerprint`, and what hangs together by lineage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import Storage, absolute, join
from ..data.dataset import MANIFEST


@dataclass(frozen=True)
class Node:
    """An artifact, finished or begun, and the names directly under it."""

    artifact: Artifact
    names: frozenset[str]

    @property
    def uri(self) -> str:
        return self.artifact.uri

    @property
    def finished(self) -> bool:
        return "artifact.json" in self.names

    @property
    def holds_data(self) -> bool:
        return MANIFEST in self.names

    @cached_property
    def meta(self) -> dict[str, Any]:
        """`artifact.json`, or of an unfinished one `started.json`. Raises UserError for one that cannot be read."""
        name = "artifact.json" if self.finished else "started.json"
        return _legible(self.artifact, name, "parents")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """`dataset.json`. Raises UserError for one that cannot be read."""
        return _legible(self.artifact, MANIFEST, "splits")

    @cached_property
    def parents(self) -> frozenset[str]:
        """URIs of what it was made from."""
        given = self.meta["parents"].values()
        found = {str(parent["uri"] if isinstance(parent, dict) else parent) for parent in given}
        if self.holds_data and self.manifest.get("before"):
            found.add(self.manifest["before"])
        return frozenset(absolute(uri).rstrip("/") for uri in found)

    def files(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(split, URI, manifest entry) of every shard."""
        for split, held in self.manifest["splits"].items():
            for entry in held["files"]:
                path = entry["path"]
                yield split, path if "://" in path or path.startswith("/") else self.artifact.path(path), entry


def place(uri: str) -> str:
    """One spelling for one place: `file:///a`, `/a` and a link to it are the same, and so are `s3a://` and `s3://`."""
    protocol, found, rest = uri.partition("://")
    if not found or protocol == "file":
        return os.path.realpath(rest or uri)
    return f"s3://{rest}" if protocol == "s3a" else uri


def node(artifact: Artifact) -> Node | None:
    """None where there is no artifact."""
    names = frozenset(artifact.storage.names(artifact.uri))
    return Node(artifact, names) if names & {"artifact.json", "started.json"} else None


def nodes(root: str, storage: Storage) -> Iterator[Node]:
    """Every artifact under a root, by name, stage and fingerprint."""
    for name in storage.names(root):
        for stage in storage.names(join(root, name)):
            for fingerprint in storage.names(join(root, name, stage)):
                if found := node(Artifact(join(root, name, stage, fingerprint), storage)):
                    yield found


def descendants(found: Iterable[Node], ancestors: Iterable[str]) -> list[Node]:
    """Those made from any of `ancestors`, directly or not; without these."""
    found, reached = list(found), set(ancestors)
    first, size = set(reached), -1
    while size != len(reached):
        size = len(reached)
        reached |= {each.uri for each in found if each.parents & reached}
    return [each for each in found if each.uri in reached - first]


def _legible(artifact: Artifact, name: str, key: str) -> dict[str, Any]:
    try:
        value = artifact.read_json(name)
        if not isinstance(value[key], dict):
            raise TypeError(f"'{key}' is no mapping")
        return value
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{artifact.path(name)}: cannot be read ({type(error).__name__}: {error}), so what it refers to is unknown;"
            " nothing more is done: mend it, or remove this artifact by hand"
        ) from error
