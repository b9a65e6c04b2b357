"""Artifacts that a recipe names by their URI: another recipe's, as a parent of this one's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.artifact import Artifact
from ..core.storage import Storage, absolute

GIVEN = "artifact"
"""In a stage's `needs`, in place of a stage's name: the artifact is there, at `uri` of the options."""


def given(uri: str) -> tuple[str, Mapping[str, Any]]:
    """What `needs` says of an artifact at a URI."""
    return GIVEN, {"uri": uri}


def open_given(uri: str, storage: Storage) -> Artifact:
    """The artifact at a URI. Raises UserError where there is none that is finished."""
    artifact = Artifact(absolute(uri).rstrip("/"), storage)
    artifact.meta()
    return artifact
