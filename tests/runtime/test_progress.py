from __future__ import annotations

import io
import re
import sys

import pytest

from mapsto.runtime import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    for item in progress.bar(range(3), "rows", 3):
        progress.say(f"at {item}")
    progress.say("after")
    assert capsys.readouterr().out == "at 0\nat 1\nat 2\nafter\n"
    assert re.search(r"rows: +\d+%\|.*\| \d/3", terminal.getvalue())


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    assert list(progress.bar(range(3), "rows", 3)) == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["rows: 1 of 3", "rows: 2 of 3", "rows: 3 of 3", "rows: 3 of 3"]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure(quiet=True)
    try:
        progress.say("x")
        assert list(progress.bar([1], "rows")) == [1]
    finally:
        progress.configure(quiet=False)
    assert capsys.readouterr() == ("", "")
