"""Writes behind training's back: in order, one at a time, failures told or raised."""

from __future__ import annotations

import threading

import pytest

from mapsto.core.errors import UserError
from mapsto.engine.behind import Behind


def test_the_second_write_waits_for_the_first() -> None:
    behind, go, written = Behind(), threading.Event(), list[int]()

    def first() -> None:
        go.wait(10)
        written.append(1)

    behind.start("first", first)
    assert written == []
    threading.Timer(0.05, go.set).start()
    behind.start("second", lambda: written.append(2))
    assert written[0] == 1
    behind.wait()
    assert written == [1, 2]
    assert behind.told() == []


def test_a_full_disk_is_told_once_and_a_bug_is_raised() -> None:
    def full() -> None:
        raise UserError("a/state.pt: no space left on the disk")

    def bug() -> None:
        raise KeyError("name")

    behind = Behind()
    behind.start("checkpoint after step 4", full)
    behind.wait()
    assert behind.told() == ["checkpoint after step 4 was not written: a/state.pt: no space left on the disk"]
    assert behind.told() == []
    behind.start("checkpoint after step 8", bug)
    with pytest.raises(KeyError):
        behind.wait()
