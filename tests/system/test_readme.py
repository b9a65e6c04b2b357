"""The README's two commands as a newcomer types them, and what they show in a browser (Debian's chromium)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from mapsto.core.codecs import encode
from mapsto.data.scenes import CLASSES, numbered

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.system


def commands(name: str) -> list[str]:
    """The lines of the shell block under the README's heading."""
    text = (ROOT / "README.md").read_text().split(f"## {name}\n")[1]
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [line.split("  #")[0].strip() for line in block.group(1).splitlines()]


def shell(command: str, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "PYTEST")) and k != "PYTHONPATH"
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="module")
def demo():
    """`make demo` in this tree, ended by `make stop`; its output."""
    first, second = commands("Two commands")
    assert (first, second) == ("make demo", "make test")
    done = shell(first, ROOT, 900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    yield done.stdout
    stopped = shell("make stop", ROOT, 120)
    assert stopped.returncode == 0, stopped.stderr


def test_the_demo_goes_from_the_bucket_to_the_endpoint(demo):
    for stage in ("ingest train", "tune", "train", "evaluate", "compress", "serve"):
        assert re.search(rf"^{stage}: (done|reused)", demo, re.MULTILINE), f"{stage}: {demo[-3000:]}"
    right, total = map(int, re.search(r"(\d+) of (\d+) fresh photographs right", demo).groups())
    assert right / total > 0.6  # eight classes: chance is 0.125
    url = re.search(r"http://127\.0\.0\.1:\d+/v1/models/demo:predict", demo).group()
    answer = requests.post(
        url, encode(numbered(77, 0, (96, 96)).image), headers={"Content-Type": "image/jpeg"}, timeout=30
    )
    assert answer.json()["predictions"][0]["label"] in CLASSES


def test_no_key_is_in_a_report_or_an_artifact(demo):
    keys = json.loads((ROOT / ".demo" / "keys.json").read_text())
    for file in [ROOT / ".demo" / "report.html", *(ROOT / ".demo" / "s3" / "mapsto").rglob("*")]:
        if file.is_file():
            assert keys["secret"].encode() not in file.read_bytes(), file
    assert keys["secret"] not in demo


def test_the_report_page_shows_in_a_browser(demo, tmp_path):
    chromium = shutil.which("chromium")
    assert chromium, "Debian's chromium is missing: .ci/run installs it"
    shot = tmp_path / "report.png"
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/profile", "--window-size=1100,2400",
        f"--screenshot={shot}", f"file://{ROOT}/.demo/report.html",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[:2] == (2400, 1100)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # pictures and charts, not a blank or an error page
