"""Folders that enclose all of a source's images (`flowers/train/rose/1.jpg`): they are no class, and what lies in them is read as if it
lay at the top."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from ...core.disk_index import DiskIndex
from .item import SPLIT_NAMES, UNLABELLED, Reference, Told, hidden, is_image, is_text, placed
from .look import parts

A_TEXT = "not an image but a text: not read"
PART = 256
"""References that are put by at a time."""


@dataclass
class Shared:
    """The folders that the images seen so far lie in, all of them; None before the first."""

    folders: list[str] | None = None
    least: int = 0
    """Folders above the image with the fewest."""
    most: int = 0

    def see(self, path: str) -> None:
        own = _folders(path)
        if self.folders is None:
            ends = [k for k, name in enumerate(own) if name.lower() in SPLIT_NAMES or name == UNLABELLED]
            self.folders, self.least = own[: ends[0]] if ends else own, len(own)
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(self.folders, own, strict=False))
        self.folders = [name for name, _ in pairs]
        self.least, self.most = min(self.least, len(own)), max(self.most, len(own))

    @property
    def enclosing(self) -> list[str]:
        """Those of them that are no class: an image's own folder is one. More images never make it longer."""
        folders = self.folders or []
        return folders[:-1] if len(folders) == self.least else folders

    @property
    def sure(self) -> bool:
        """Whether several classes lie in the shared folders; of one class alone its own folder may be shared as well."""
        return self.folders is not None and len(self.folders) < self.least


def below(
    found: Iterable[tuple[str, Reference]], told: Told, counts: Callable[[str], bool] = is_image
) -> Iterator[Reference]:
    """References with label and split by their paths (`item.placed`), in their order, without the folders that all images by name share
    (or volumes, or videos: what `counts`). Texts by name are refused without a label: they take no image's place in its class's splits.

    `found`: (path, or "" where it says nothing; reference). A split of its own stays. They are put by on disk for as long as all lie in
    one folder that may enclose them: until a second class comes, in most sources.
    """
    yield from each_below([found], told, counts)


def each_below(
    groups: Iterable[Iterable[tuple[str, Reference]]], told: Told, counts: Callable[[str], bool] = is_image
) -> Iterator[Reference]:
    """The same of groups, such as splits, each of which may have folders of its own that enclose it. All are taken for as deep: none
    loses more folders than the group of several classes that has the fewest, or, where no group has several, the group that has the
    fewest, so that a class has one name in all of them."""
    waiting: list[tuple[Shared, DiskIndex]] = []
    for found in groups:
        shared, held = Shared(), DiskIndex()
        waiting.append((shared, held))
        for part in parts(found, PART):
            for path, _ in part:
                if counts(path) and not hidden(path.removeprefix("./")):
                    shared.see(path)
            if shared.folders is None or shared.enclosing:
                held.extend((path, json.dumps(vars(reference)), 0) for path, reference in part)
                continue
            yield from _all_said(held, "")
            held = DiskIndex()
            waiting[-1] = shared, held
            for path, reference in part:
                yield _said(path, reference, "")
    labelled = [shared for shared, _ in waiting if shared.least]
    sure = [shared for shared in labelled if shared.sure]
    depth = min((len(shared.enclosing) for shared in sure or labelled), default=0)
    for shared, held in waiting:
        enclosing = "".join(f"{name}/" for name in shared.enclosing[:depth])
        note = f"all images lie in {enclosing}, which is taken for no class: what lies in it is read"
        if enclosing and note not in told.notes:
            told.notes.append(note)
        yield from _all_said(held, enclosing)


def _all_said(held: DiskIndex, enclosing: str) -> Iterator[Reference]:
    for path, text, _ in held:
        yield _said(path, Reference(**json.loads(text)), enclosing)


def _said(path: str, reference: Reference, enclosing: str) -> Reference:
    if not path:
        return reference
    label, split = placed("/".join([*_folders(path), path.rsplit("/", 1)[-1]]).removeprefix(enclosing))
    split = reference.split or split
    if is_text(path):
        return replace(reference, split=split, reason=reference.reason or A_TEXT)
    return replace(reference, label=label, split=split)


def _folders(path: str) -> list[str]:
    return [part for part in path.split("/")[:-1] if part not in ("", ".")]
