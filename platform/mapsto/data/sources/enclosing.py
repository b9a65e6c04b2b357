"""Folders that enclose all of a source's images (`flowers/train/rose/1.jpg`): they are no class, and what lies in them is read as if it
lay at the top."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from ...core.disk_index import DiskIndex
from .item import SPLIT_NAMES, UNLABELLED, Reference, Told, hidden, is_image, placed
from .look import parts

PART = 256
"""References that are put by at a time."""


@dataclass
class _Shared:
    """The folders that the images seen so far lie in, all of them; None before the first."""

    folders: list[str] | None = None
    least: int = 0
    """Folders above the image with the fewest."""

    def see(self, path: str) -> None:
        own = _folders(path)
        if self.folders is None:
            ends = [k for k, name in enumerate(own) if name.lower() in SPLIT_NAMES or name == UNLABELLED]
            self.folders, self.least = own[: ends[0]] if ends else own, len(own)
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(self.folders, own, strict=False))
        self.folders = [name for name, _ in pairs]
        self.least = min(self.least, len(own))

    @property
    def enclosing(self) -> list[str]:
        """Those of them that are no class: an image's own folder is one. More images never make it longer."""
        folders = self.folders or []
        return folders[:-1] if len(folders) == self.least else folders


def below(
    found: Iterable[tuple[str, Reference]], told: Told, counts: Callable[[str], bool] = is_image
) -> Iterator[Reference]:
    """References with label and split by their paths (`item.placed`), in their order, without the folders that all images by name share
    (or volumes, or videos: what `counts`).

    `found`: (path, or "" where it says nothing; reference). A split of its own stays. They are put by on disk for as long as all lie in
    one folder that may enclose them: until a second class comes, in most sources.
    """
    rest, shared, held = iter(found), _Shared(), DiskIndex()
    for part in parts(rest, PART):
        for path, _ in part:
            if counts(path) and not hidden(path.removeprefix("./")):
                shared.see(path)
        held.extend((path, json.dumps(vars(reference)), 0) for path, reference in part)
        if shared.folders is not None and not shared.enclosing:
            break
    enclosing = "".join(f"{name}/" for name in shared.enclosing)
    if enclosing:
        told.notes.append(f"all images lie in {enclosing}, which is taken for no class: what lies in it is read")
    for path, text, _ in held:
        yield _said(path, Reference(**json.loads(text)), enclosing)
    for path, reference in rest:
        yield _said(path, reference, enclosing)


def _said(path: str, reference: Reference, enclosing: str) -> Reference:
    if not path:
        return reference
    label, split = placed("/".join([*_folders(path), path.rsplit("/", 1)[-1]]).removeprefix(enclosing))
    return replace(reference, label=label, split=reference.split or split)


def _folders(path: str) -> list[str]:
    return [part for part in path.split("/")[:-1] if part not in ("", ".")]
