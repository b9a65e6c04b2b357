"""What the demo does before it starts anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_a_folder_that_is_not_there_is_one_line_and_neither_starts_nor_ends_anything(tmp_path: Path) -> None:
    state = ROOT / ".demo" / "state.json"
    before = state.read_bytes() if state.exists() else None
    asked = [sys.executable, str(ROOT / "jobs" / "demo.py"), "--data", str(tmp_path / "typo")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"DATA={tmp_path / 'typo'}: no such folder\n"
    assert (state.read_bytes() if state.exists() else None) == before


def test_ones_own_s3_is_named_with_its_keys_and_never_the_demos(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demo: Any = SourceFileLoader("demo", str(ROOT / "jobs" / "demo.py")).load_module()
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert "data.train.storage.anonymous=true" in demo._own("s3://theirs/images")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = mine\naws_secret_access_key = hush\n")
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n")
    settings = demo._own("s3://theirs/images")
    assert not [line for line in settings if "hush" in line or "anonymous" in line]
    environment = demo._environment("s3://theirs/images")
    asked = dict(re.findall(r"data\.train\.storage\.(\w+)=\$\{env:(\w+)\}", "\n".join(settings)))
    assert {name: environment[variable] for name, variable in asked.items()} == {
        "endpoint_url": "https://s3.eu-west-1.amazonaws.com", "region": "eu-west-1", "key": "mine", "secret": "hush",
    }  # fmt: skip
    assert environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9321"
