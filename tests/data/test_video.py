"""Frames of videos: each frame is drawn with its own grey, so that its number is seen in what comes out."""

from __future__ import annotations

import io
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mapsto.core.codecs import decode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.reading import fetch
from mapsto.data.sources import detect, listing
from mapsto.data.video import MISSING, frames, upright, windows

STORE = Storage(retries=0)
HEIGHT, WIDTH, COUNT, RATE = 48, 64, 30, 10
KINDS = [
    ("mp4", "libx264"), ("mov", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("avi", "mjpeg"),
    ("ts", "libx264"), ("flv", "flv1"), ("wmv", "wmv2"), ("mpg", "mpeg2video"),
]  # fmt: skip
CORNERS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = [250, 0, 0], [0, 250, 0], [0, 0, 250]


def film(suffix: str = "mp4", codec: str = "libx264", count: int = COUNT, rate: int = RATE, turn=None, times=None, still=None, **options: str) -> bytes:  # fmt: skip
    out = io.BytesIO()
    with av.open(
        out, "w", format={"mkv": "matroska", "ts": "mpegts", "wmv": "asf", "mpg": "mpeg"}.get(suffix, suffix)
    ) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.codec_context.thread_count = WIDTH, HEIGHT, 1
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000  # its greys drift at the default rate
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if turn:
            stream.set_display_rotation(*turn)
        for k in range(count):
            picture = np.full((HEIGHT, WIDTH, 3), 8 * k % 256, np.uint8) if still is None else still
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def numbers(data: bytes, per_second: float | None) -> list[int | None]:
    """The numbers of the frames that come out, None for a reason."""
    wanted, _ = windows(io.BytesIO(data), per_second)
    out = list(frames(io.BytesIO(data), wanted))
    assert [window for window, _ in out] == wanted
    return [round(decode(got).mean() / 8) if isinstance(got, bytes) else None for _, got in out]


@pytest.mark.parametrize(("suffix", "codec"), KINDS)
def test_frames_at_a_rate_and_every_frame(suffix, codec):
    rate = 25 if suffix == "mpg" else RATE  # MPEG-2's own rates
    data = film(suffix, codec, rate=rate)
    assert numbers(data, None) == list(range(COUNT))
    assert numbers(data, 60) == list(range(COUNT))
    assert numbers(data, rate / 10) == [0, 10, 20]
    assert numbers(data, rate / 2) == list(range(0, COUNT, 2))


def test_a_frame_never_comes_twice():
    times = [0, 100, 200, 1500, 1600, 3900]
    data = film("mkv", count=6, times=times)
    for rate in (1, 2, 5):
        every = numbers(data, rate)
        seen = [n for n in every if n is not None]
        assert seen == sorted(set(seen)) and every.count(None) >= len(every) - 6
    assert numbers(data, None) == [0, 1, 2, 3, 4, 5]


def test_windows_of_any_part_give_the_frames_that_all_of_them_give():
    data = film(count=300, g="25")
    wanted, _ = windows(io.BytesIO(data), 2.0)
    every = dict(frames(io.BytesIO(data), wanted))
    assert len(every) == 60 and MISSING not in every.values()
    for part in (wanted[::13], wanted[40:43], [wanted[59], wanted[0]], wanted[55:]):  # sought, as tasks of splits do
        assert dict(frames(io.BytesIO(data), part)) == {window: every[window] for window in part}


TURNS = [(degrees, h, v) for degrees in (0, 90, 180, 270) for h in (False, True) for v in (False, True)]


@pytest.mark.parametrize("turn", TURNS)
def test_the_display_matrix_is_applied(turn):
    degrees, horizontal, vertical = turn
    with av.open(io.BytesIO(film(count=2, turn=turn, still=CORNERS))) as container:
        seen = upright(next(container.decode(video=0)))
    wanted = np.rot90(CORNERS, degrees // 90)
    wanted = wanted[:, ::-1] if horizontal else wanted
    wanted = wanted[::-1] if vertical else wanted
    assert seen.shape == wanted.shape and np.abs(seen.astype(int) - wanted).mean() < 4


def test_frames_are_jpeg_near_the_original():
    data = film(count=2, still=CORNERS)
    _, picture = next(frames(io.BytesIO(data), windows(io.BytesIO(data), None)[0]))
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
    assert np.abs(decode(picture).astype(int) - CORNERS).mean() < 4


def test_what_is_readable_of_a_broken_video_is_kept_and_the_rest_counted():
    whole = film(
        "mkv", g="5", bf="0", count=40, still=np.random.default_rng(0).integers(0, 256, CORNERS.shape, np.uint8)
    )
    half = whole[: len(whole) // 2]
    wanted, wrong = windows(io.BytesIO(half), 5.0)  # its header still says four seconds
    got = [data for _, data in frames(io.BytesIO(half), wanted)]
    assert len(got) == 20 and wrong is None
    kept = sum(isinstance(data, bytes) for data in got)
    assert 5 <= kept <= 12 and all(isinstance(data, bytes) for data in got[:kept]) and set(got[kept:]) == {MISSING}

    listed = film("avi", "mjpeg")
    wanted, wrong = windows(io.BytesIO(listed[: len(listed) // 2]), None)
    assert 0 < len(wanted) < COUNT and wrong and "breaks off" in wrong


def test_a_damaged_packet_costs_its_own_frames():
    data = bytearray(film("avi", "mjpeg"))
    places = [k for k in range(len(data)) if data[k : k + 3] == b"\xff\xd8\xff"]
    data[places[4] : places[5] - 8] = bytes(places[5] - 8 - places[4])
    seen = numbers(bytes(data), None)
    assert [n for n in seen if n is not None] == [n for n in range(COUNT) if n != 4] and seen.count(None) == 1


def test_a_folder_of_videos(tmp_path: Path):
    for name in ("train/cat/a.mp4", "val/dog/b.MKV"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(film(name[-3:].lower()))
    (tmp_path / "val/dog/c.avi").write_bytes(b"RIFF of nothing")
    (tmp_path / "val/dog/notes.txt").write_text("x")
    assert detect(str(tmp_path), STORE)[0] == detect(str(tmp_path / "train/cat/a.mp4"), STORE)[0] == "video"
    references = list(listing("video", str(tmp_path), STORE, "", {"frames_per_s": 2.0}))
    got = {r.name.removeprefix(f"{tmp_path}/"): (r, data) for r, data in fetch(references, STORE)}
    assert len(got) == 6 + 6 + 2
    reference, data = got["train/cat/a.mp4#3"]
    assert (reference.label, reference.split) == ("cat", "train") and reference.columns == {
        "identity": "train/cat/a.mp4"
    }
    assert round(decode(data).mean() / 8) == 15
    assert "not a video that can be read" in got["val/dog/c.avi"][1] and got["val/dog/notes.txt"][1] == "not a video"
    assert len(list(listing("video", str(tmp_path), STORE, ""))) == 3 + 3 + 2  # one a second, by default
    (tmp_path / "none").mkdir()
    (tmp_path / "none/x.txt").write_text("x")
    with pytest.raises(UserError, match="no video below it"):
        list(listing("video", str(tmp_path / "none"), STORE, ""))


def sound() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a video"),
        (b"nothing of a video" * 100, "not a video"),
        (film()[:2000], "not a video|no moving pictures"),
        (sound(), "no moving pictures"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),  # a list of other files
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "not a video"),
    ],
)
def test_what_is_no_video_says_so(data, says):
    for read in (lambda: windows(io.BytesIO(data), 1.0), lambda: list(frames(io.BytesIO(data), [(0, 9)]))):
        with pytest.raises(UserError, match=says) as told:
            read()
        assert "\n" not in str(told.value)


def test_a_length_that_nobody_can_have_is_refused():
    data = bytearray(film("mkv", count=3))
    place = data.find(b"\x44\x89\x88") + 3  # the segment's Duration, a 64-bit float in milliseconds
    assert place > 3
    data[place : place + 8] = np.array(1e15, ">f8").tobytes()
    with pytest.raises(UserError, match="over the limit"):
        windows(io.BytesIO(bytes(data)), 5.0)


@pytest.mark.parametrize("seed", range(12))
def test_no_damage_is_worse_than_an_error(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(film("mp4" if seed % 2 else "mkv", count=6))
    for place in rng.integers(0, len(data), 20):
        data[place] = rng.integers(0, 256)
    with suppress(UserError):
        wanted, _ = windows(io.BytesIO(bytes(data)), None)
        assert len(list(frames(io.BytesIO(bytes(data)), wanted))) == len(wanted)


def test_without_pyav_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install 'mapsto\[formats\]'"):
        list(listing("video", str(tmp_path), STORE, ""))
