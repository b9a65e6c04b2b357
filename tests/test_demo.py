"""What the demo does before it starts anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_folder_that_is_not_there_is_one_line_and_neither_starts_nor_ends_anything(tmp_path: Path) -> None:
    state = ROOT / ".demo" / "state.json"
    before = state.read_bytes() if state.exists() else None
    asked = [sys.executable, str(ROOT / "jobs" / "demo.py"), "--data", str(tmp_path / "typo")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"DATA={tmp_path / 'typo'}: no such folder\n"
    assert (state.read_bytes() if state.exists() else None) == before
