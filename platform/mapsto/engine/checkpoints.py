"""Training states at an artifact's URI: `checkpoints/<epoch>-<step>/state.pt`, and `done.json` after it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.artifact import Artifact, digest
from ..core.errors import UserError


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state of tensors, numbers, strings, lists and dicts, as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What to_bytes wrote; loads data only, never code (`weights_only`)."""
    return torch.load(io.BytesIO(data), map_location=device, weights_only=True)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one train artifact; one process writes them."""

    artifact: Artifact
    keep: int
    """How many, besides the newest: the best by score, and where too few have one, the next newest."""
    mode: Literal["max", "min"]
    """Whether the best score is the largest or the smallest."""

    def save(self, data: bytes, epoch: int, step: int, score: float | None) -> str:
        """Write the state (`to_bytes`) after `epoch` epochs and `step` steps, then drop those that are not to be kept."""
        name = f"{epoch:05d}-{step:09d}"
        self.artifact.write(data, "checkpoints", name, "state.pt")
        done = {
            "epoch": epoch,
            "step": step,
            "score": score,
            "bytes": len(data),
            "digest": digest(data),
        }
        self.artifact.write_json(done, "checkpoints", name, "done.json")
        self._prune()
        return name

    def complete(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, done.json) of every complete checkpoint, oldest first."""
        return [(name, done) for name, done in self._named() if done is not None][::-1]

    def _named(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """The same, newest first, with those whose done.json is damaged (None): cut short, or empty."""
        for name in reversed(self.artifact.storage.names(self.artifact.path("checkpoints"))):
            if self.artifact.storage.exists(self.artifact.path("checkpoints", name, "done.json")):
                try:
                    done = self.done(name)
                except ValueError:
                    done = None
                yield name, done

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint."""
        return next((name for name, done in self._named() if done is not None), None)

    def sound(self) -> tuple[str | None, list[str]]:
        """Name of the newest complete checkpoint that holds the bytes it was written with, and a line for each newer one
        that does not: cut short by a machine that lost its power, or changed."""
        told = []
        for name, done in self._named():
            damage = "its done.json cannot be read" if done is None else self._damage(name, done)
            if not damage:
                return name, told
            told.append(f"{self.artifact.path('checkpoints', name)}: damaged ({damage}); an older one is taken")
        return None, told

    def _damage(self, name: str, done: Mapping[str, Any]) -> str:
        if not self.artifact.storage.exists(self.artifact.path("checkpoints", name, "state.pt")):
            return "its state.pt is missing"
        data = self.artifact.read("checkpoints", name, "state.pt")
        whole = len(data) == done["bytes"] and digest(data) == done["digest"]
        return "" if whole else f"{len(data)} bytes of {done['bytes']}"

    def done(self, name: str) -> dict[str, Any]:
        """A complete checkpoint's epoch, step, score (None: not measured), bytes and digest. ValueError: it is damaged."""
        return self.artifact.read_json("checkpoints", name, "done.json")

    def give(self, name: str, folder: Path) -> str:
        """Copy a complete checkpoint into a local folder, for another run's `take`; its digest."""
        done = self.done(name)
        (folder / "state.pt").write_bytes(self.artifact.read("checkpoints", name, "state.pt"))
        (folder / "done.json").write_text(json.dumps(done))
        return done["digest"]

    def take(self, folder: Path) -> None:
        """Go on from what another run's `give` wrote. Raises UserError where the bytes are not those that the other saved."""
        done, data = json.loads((folder / "done.json").read_text()), (folder / "state.pt").read_bytes()
        if digest(data) != done["digest"]:
            raise UserError(
                f"{self.artifact.uri}: the training state that it is to go on from, after step {done['step']}, was damaged on its "
                f"way ({len(data)} bytes of {done['bytes']}); run the same command again",
                outside=True,
            )
        self.save(data, done["epoch"], done["step"], done["score"])

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        return from_bytes(self.artifact.read("checkpoints", name, "state.pt"), device)

    def _prune(self) -> None:
        found = self.complete()
        scored = sorted(
            (done["score"] if self.mode == "max" else -done["score"], name)
            for name, done in found
            if done["score"] is not None and math.isfinite(done["score"])
        )
        best = [name for _, name in reversed(scored)]
        others = [name for name, _ in reversed(found) if name not in best]
        kept = {*[name for name, _ in found[-1:]], *(best + others)[: self.keep]}
        storage = self.artifact.storage
        half = set(storage.names(self.artifact.path("checkpoints"))) - {name for name, _ in found}
        for name in [*(name for name, _ in found), *sorted(half)]:  # half written by a run that broke off
            if name not in kept:
                # done.json goes first, so that a half-removed checkpoint never counts as one
                storage.delete(self.artifact.path("checkpoints", name, "done.json"))
                storage.delete(self.artifact.path("checkpoints", name))
