"""A JSON object as a stream against `json`, whatever the size of what is read at a time."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsto.data.sources import json_stream
from mapsto.data.sources.json_stream import elements

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def whole(text: str) -> dict:
    out = {}
    for key, value, inside in elements(io.StringIO(text)):
        if inside:
            out[key].append(value)
        else:
            out[key] = list(value) if isinstance(value, list) else value
    return out


@pytest.fixture(params=[1, 2, 7, 2**20])
def read(request, monkeypatch):
    monkeypatch.setattr(json_stream, "READ", request.param)


@given(
    value=st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    indent=st.sampled_from([None, 1]),
    tail=st.sampled_from(["", " \n"]),
)
def check(value, indent, tail):
    assert whole(json.dumps(value, indent=indent) + tail) == value


def test_an_object_is_what_json_reads(read):
    check()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[", "nope", '{"a"}', '{"a": [1, 2}', '{"a": [1 2]}', '{"a": 1} 2', '{"a": 1,}', "{a: 1}", '{"a": "b', '{"a": [1,]}', '{"a": [nope]}'],
)  # fmt: skip
def test_what_json_refuses_is_refused(read, text):
    with pytest.raises(ValueError, match=r"."):
        json.loads(text)
    with pytest.raises(ValueError, match=r": char \d+$"):
        whole(text)


def test_what_is_no_object_has_no_elements(read):
    assert whole("[]") == whole("[1, 2]") == whole("3") == {}


def test_what_never_ends_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(json_stream, "READ", 10)
    monkeypatch.setattr(json_stream, "LARGEST", 100)
    file = io.StringIO('{"a": ["' + "x" * 10_000)
    with pytest.raises(ValueError, match="Unterminated string"):
        list(elements(file))
    assert file.tell() < 1000
