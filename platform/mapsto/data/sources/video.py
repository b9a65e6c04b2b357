"""Videos in folders as of images: their frames, `film.mp4#k`, so many per second or every one (`frames_per_s`).

`identity` is the video's path: `group: identity` keeps each video's frames in one split. `video.py` makes the JPEG.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...core.errors import UserError
from ...core.storage import Storage
from ..video import library, windows
from .enclosing import below
from .item import Reference, Told, is_image, is_video
from .look import Look, files

SETTINGS = ("frames_per_s", "told")


def recognise(look: Look) -> str | None:
    if is_video(look.uri):
        return "its name ends like a video's"
    videos = sum(map(is_video, look.names))
    return f"videos among its files: {videos}, images: none" if videos and not any(map(is_image, look.names)) else None


def listing(uri: str, storage: Storage, work: str, told: Told, frames_per_s: float | None = 1.0) -> Iterator[Reference]:
    """Reads each video's header; all of it, undecoded, where every frame is wanted or the header has no length. One that
    cannot be read is one reference with the reason, as is any other file. Raises UserError without PyAV."""
    library()
    yield from below(_found(uri, storage, frames_per_s), told, is_video)


def _found(uri: str, storage: Storage, frames_per_s: float | None) -> Iterator[tuple[str, Reference]]:
    found = 0
    for at, name in files(uri, storage, is_video(uri)):
        if not is_video(name):
            yield name, Reference(at, at, reason="not a video")
            continue
        found += 1
        fs, path = storage.fs(at)
        with storage.retry(at, lambda fs=fs, path=path: fs.open(path, "rb")) as file:
            try:
                wanted, wrong = windows(file, frames_per_s)
            except UserError as error:
                wanted, wrong = [], str(error)
        columns = {"identity": name}
        for k, (begin, end) in enumerate(wanted):
            yield name, Reference(f"{at}#{k}", at, "frame", begin, member=str(end), columns=columns)
        if wrong or not wanted:
            yield name, Reference(at, at, reason=wrong or "a video without a frame")
    if not found:
        raise UserError(f"{uri}: no video below it")
