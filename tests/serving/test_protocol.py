"""Bodies in, JSON out."""

from __future__ import annotations

import base64
import io
import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mapsto.core.errors import UserError
from mapsto.core.task import Field, Signature
from mapsto.serving import protocol

IMAGE = Signature((Field("image", "image"),), ())
SEED = Signature((Field("seed", "seed"),), ())
NUMBER = Signature((Field("n", "number"),), ())
STYLE = Signature((Field("content", "image"), Field("style", "image"), Field("strength", "number", required=False)), ())


def multipart(*parts: tuple[str, Any]) -> tuple[str, bytes]:
    """As the requests library writes it."""
    files = [
        (name, (f"{i}.jpg", value) if isinstance(value, bytes) else (None, value))
        for i, (name, value) in enumerate(parts)
    ]
    prepared = requests.Request("POST", "http://x", files=files).prepare()
    assert isinstance(prepared.body, bytes)
    return prepared.headers["Content-Type"], prepared.body


@pytest.mark.parametrize(
    "kind",
    ["image/jpeg", "image/png", "IMAGE/WEBP", "application/octet-stream", "", "application/x-www-form-urlencoded"],
)
def test_a_bare_image(kind: str) -> None:
    assert protocol.parse(kind, b"abc", IMAGE) == [{"image": b"abc"}]


def test_multipart_of_several_images_keeps_their_order() -> None:
    assert protocol.parse(*multipart(("image", b"a"), ("image", b"\r\n--b")), IMAGE) == [
        {"image": b"a"},
        {"image": b"\r\n--b"},
    ]


def test_multipart_of_a_large_file_stays_in_memory() -> None:
    big = bytes(range(256)) * 20_000
    assert protocol.parse(*multipart(("image", big)), IMAGE) == [{"image": big}]


def test_one_style_goes_with_every_content() -> None:
    found = protocol.parse(
        *multipart(("content", b"a"), ("content", b"b"), ("style", b"s"), ("strength", "0.5")), STYLE
    )
    assert found == [{"content": c, "style": b"s", "strength": 0.5} for c in (b"a", b"b")]


def test_json_instances() -> None:
    assert protocol.parse("application/json; charset=utf-8", b'{"instances": [{"seed": 1}, {"seed": "-2"}]}', SEED) == [
        {"seed": 1},
        {"seed": -2},
    ]
    body = json.dumps({"instances": [{"image": {"b64": base64.b64encode(b"abc").decode()}}]}).encode()
    assert protocol.parse("application/json", body, IMAGE) == [{"image": b"abc"}]


@pytest.mark.parametrize(
    ("kind", "body", "signature", "message"),
    [
        ("text/plain", b"x", IMAGE, "content type 'text/plain' is not understood; send image"),
        ("image/png", b"", IMAGE, "the body is empty"),
        ("image/png", b"x", SEED, r'send application/json \{"instances": \[\{"seed": ...'),
        ("application/json", b"{", SEED, "not valid JSON"),
        ("application/json", b"[]", SEED, r'must be \{"instances"'),
        ("application/json", b'{"instances": []}', SEED, "at least one"),
        (
            "application/json",
            b'{"instances": [{"sed": 1}]}',
            SEED,
            "instance 0: unknown input 'sed', did you mean 'seed'",
        ),
        ("application/json", b'{"instances": [{"seed": 1}, {}]}', SEED, "instance 1: input 'seed' is missing"),
        ("application/json", b'{"instances": [{"seed": true}]}', SEED, "'seed' must be a seed, not true"),
        ("application/json", b'{"instances": [{"seed": 1.5}]}', SEED, "'seed' must be a seed"),
        ("application/json", b'{"instances": [{"seed": "--5"}]}', SEED, "'seed' must be a seed"),
        ("application/json", '{"instances": [{"seed": "²"}]}'.encode(), SEED, "'seed' must be a seed"),
        ("application/json", b'{"instances": [{"seed": "' + b"9" * 5000 + b'"}]}', SEED, "'seed' must be a seed"),
        ("application/json", b'{"instances": [{"n": ' + b"9" * 400 + b"}]}", NUMBER, "'n' must be a number"),
        ("application/json", b'{"instances": [{"n": true}]}', NUMBER, "'n' must be a number, not true"),
        ("application/json", b'{"instances": [{"image": "abc"}]}', IMAGE, "b64"),
        ("application/json", b'{"instances": [{"image": {"b64": "!"}}]}', IMAGE, "not valid base64"),
        ("multipart/form-data", b"x", IMAGE, "multipart body cannot be parsed"),
        ("multipart/form-data; boundary=b", b"", IMAGE, "no parts"),
        (
            "application/json",
            json.dumps({"instances": [{"seed": 1}] * 300}).encode(),
            SEED,
            "300 instances in one request; at most 256",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(kind: str, body: bytes, signature: Signature, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        protocol.parse(kind, body, signature)
    assert "\n" not in str(caught.value)


def test_uneven_multipart_is_refused() -> None:
    with pytest.raises(UserError, match="2 of 'style' for 3 requests"):
        protocol.parse(*multipart(*[("content", b"c")] * 3, *[("style", b"s")] * 2), STYLE)
    with pytest.raises(UserError, match="unknown input 'imag', did you mean 'image'"):
        protocol.parse(*multipart(("imag", b"c")), IMAGE)


@given(
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=b", "image/png", "x"]),
    body=st.binary(max_size=200),
)
def test_any_body_is_parsed_or_refused(kind: str, body: bytes) -> None:
    with suppress(UserError):
        assert protocol.parse(kind, body, IMAGE)


@given(st.text(max_size=9) | st.floats() | st.integers() | st.booleans() | st.lists(st.integers(), max_size=2))
def test_any_seed_or_number_is_read_or_refused(value: Any) -> None:
    for signature, name, kind in ((SEED, "seed", int), (NUMBER, "n", float)):
        with suppress(UserError):
            (found,) = protocol.parse(*multipart((name, str(value))), signature)
            assert type(found[name]) is kind
        with suppress(UserError):
            body = json.dumps({"instances": [{name: value}]}).encode()
            (found,) = protocol.parse("application/json", body, signature)
            assert type(found[name]) is kind


@given(st.lists(st.binary(min_size=0, max_size=300), min_size=1, max_size=5))
def test_multipart_gives_back_what_was_sent(images: list[bytes]) -> None:
    assert [r["image"] for r in protocol.parse(*multipart(*[("image", i) for i in images]), IMAGE)] == images


def test_encode_pictures_numbers_and_nothing_that_json_lacks() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rgb = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    body = protocol.encode(
        [{"mask": mask, "image": rgb, "p": np.float32(0.5), "x": math.nan, "v": np.array([1, 2]), "é": "ü"}]
    )
    (found,) = json.loads(body)["predictions"]
    for name, expected in (("mask", mask), ("image", rgb)):
        assert found[name]["content_type"] == "image/png"
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(found[name]["b64"])))), expected
        )
    assert (found["p"], found["x"], found["v"], found["é"]) == (0.5, None, [1, 2], "ü")


def test_the_first_picture_raw() -> None:
    mask = np.ones((2, 2), np.uint8)
    png = protocol.picture({"share": 1.0, "mask": mask})
    assert png is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), mask)
    assert protocol.picture({"label": "x"}) is None
