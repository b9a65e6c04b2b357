from __future__ import annotations

import pytest

from mapsto.runtime import progress


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
