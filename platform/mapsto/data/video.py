"""Videos → JPEG frames of quality 95, turned as the file says; by FFmpeg through PyAV (`mapsto[formats]`).

A frame is named by a window of presentation times [begin, end) in the stream's ticks, and is the first that it shows;
so a frame never comes twice, a window without one says so, and tasks need no order. Pixels keep the shape they are
stored in (no sample aspect ratio), and HDR is not mapped.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np

from ..core.codecs import MAX_PIXELS, encode
from ..core.errors import UserError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,ogg"
"""Of containers: none that names other files, as playlists do."""
TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "asf")
"""Their headers know how long they are; the others are read through."""
SEEKABLE = TIMED[:2]
MOST_FRAMES = 2**22
SEEK_S = 10
"""Frames further apart are sought, nearer ones reached by decoding."""
MISSING = "no new frame at this time: a still, a broken one, or the video breaks off"

Window = tuple[int, int]


def windows(file: BinaryIO, per_second: float | None) -> tuple[list[Window], str | None]:
    """(a window for every frame wanted, what is wrong with the rest). `per_second`: None takes every frame, as does a rate
    above the video's own. Raises UserError for a file that is no video."""
    with _opened(file) as (container, stream):
        rate, tick = stream.average_rate, stream.time_base
        begin, end = stream.start_time or 0, None
        if container.format.name in TIMED and stream.duration:
            end = begin + stream.duration
        elif container.format.name in TIMED and container.duration:
            end = begin + int(container.duration / 1_000_000 / tick)
        every = per_second is None or not rate or per_second >= rate
        if end is None or every:
            times, wrong = _times(container, stream)
            if every:
                return [(time, time + 1) for time in times], wrong
            begin, end = (times[0], times[-1] + int(1 / rate / tick)) if times else (0, 0)
        assert per_second is not None
        step, half = 1 / Fraction(per_second) / tick, Fraction(1, 2) / rate / tick
        count = -(-(end - begin) // step)
        if count > MOST_FRAMES:
            raise UserError(f"it says that it has {count} frames, over the limit of {MOST_FRAMES}")
        starts = [round(begin + k * step - half) for k in range(max(count, 1) + 1)]
        return list(pairwise(starts)), None


def frames(file: BinaryIO, wanted: Iterable[Window]) -> Iterator[tuple[Window, bytes | str]]:
    """Each window, in order of time, with its frame as JPEG or the reason why there is none."""
    left = sorted(wanted)
    with _opened(file) as (container, stream):
        gap = SEEK_S / stream.time_base if container.format.name in SEEKABLE else None
        while left:
            run = 1
            while run < len(left) and (gap is None or left[run][0] - left[run - 1][1] < gap):
                run += 1
            part, left = left[:run], left[run:]
            if gap is not None:
                _seek(container, stream, part[0][0])
            yield from _run(container, stream, part)


def _seek(container: Any, stream: Any, time: int) -> None:
    """To the last key frame before a time."""
    from av.error import FFmpegError

    try:
        container.seek(max(time, stream.start_time or 0), stream=stream)
    except FFmpegError as error:
        raise UserError(f"cannot be read as a video: {error.strerror}") from error


def _run(container: Any, stream: Any, wanted: list[Window]) -> Iterator[tuple[Window, bytes | str]]:
    k = 0
    for frame in _decoded(container, stream):
        time = frame.pts if frame.pts is not None else frame.dts
        if time is None or frame.is_corrupt:
            continue
        while k < len(wanted) and time >= wanted[k][1]:
            yield wanted[k], MISSING
            k += 1
        if k == len(wanted):
            return
        if time >= wanted[k][0]:
            yield wanted[k], encode(upright(frame), "jpeg", 95)
            k += 1
    yield from ((window, MISSING) for window in wanted[k:])


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded: a broken packet loses its own."""
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except FFmpegError:
            continue


def upright(frame: Any) -> np.ndarray:
    """A frame → H×W×3 uint8 RGB by its own colour matrix, turned and mirrored by the display matrix (ISO/IEC 14496-12,
    8.5.2.3), to whole quarter turns."""
    image = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(a) < abs(c):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _times(container: Any, stream: Any) -> tuple[list[int], str | None]:
    """Presentation times of a stream's packets, in order, undecoded; and what is wrong with the rest."""
    from av.error import FFmpegError

    times: list[int] = []
    wrong = None
    try:
        for packet in container.demux(stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if packet.size and time is not None and not packet.is_discard:
                times.append(time)
                if len(times) > MOST_FRAMES:
                    raise UserError(f"it has over {MOST_FRAMES} frames")
    except FFmpegError as error:
        wrong = f"the video breaks off after {len(times)} frames: {error.strerror}"
    if stream.frames > len(times) and wrong is None:
        wrong = f"the video breaks off: {len(times)} of its {stream.frames} frames are there"
    return sorted(set(times)), wrong


@contextmanager
def _opened(file: BinaryIO) -> Generator[tuple[Any, Any]]:
    """(container, its first video stream)."""
    av = library()
    try:
        container = av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise UserError(f"not a video that can be read: {error.strerror}") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or not streams[0].time_base:
            raise UserError("no moving pictures in it")
        stream = streams[0]
        if stream.codec_context is None:
            raise UserError("its pictures are of no known codec")
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            raise UserError(f"too large: {stream.codec_context.width}x{stream.codec_context.height}")
        stream.codec_context.thread_count = 1  # a task has one CPU
        yield container, stream


def library() -> Any:
    """PyAV. Raises UserError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError("videos are read by PyAV, which is not installed: pip install 'mapsto[formats]'") from error
    return av
