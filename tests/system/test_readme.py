"""The README's two commands as a newcomer types them, and what they show in a browser (Debian's chromium)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from mapsto.core.codecs import encode
from mapsto.data.scenes import CLASSES, numbered, write
from mapsto.runtime.leftovers import belonging

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.system


RECIPE = """\
name: flowers
root: s3://mapsto
data: {{train: {{source: "{source}"}}}}
task: {{kind: classify, image_size: 64, model: {{name: resnet10t}}}}
train: {{epochs: 1, batch_size: 16, workers: 1, cpus_per_worker: 0.5, optimizer: {{kind: sgd, lr: 0.05}}}}
evaluate: {{cpus_per_worker: 0.5}}
compress: {{max_drop: 50, steps: [{{kind: export}}, {{kind: quantize, calibration: 32}}]}}
serve: {{name: flowers, cpus_per_replica: 0.5}}
"""
"""The README's, as small as two cores want it."""
ACTIVATE = ". .venv/bin/activate"
HEAD = "http://127.0.0.1:8265"


def commands(name: str, block: int = 0) -> list[str]:
    """The lines of that shell block under the README's heading."""
    text = (ROOT / "README.md").read_text().split(f"## {name}\n")[1]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.split("  #")[0].strip() for line in blocks[block].splitlines()]


def shell(command: str, folder: Path, seconds: float, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "PYTEST")) and k != "PYTHONPATH"
    } | more
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
    left = belonging("MAPSTO_DEMO=")
    assert not left


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


def test_no_key_is_in_a_report_an_artifact_a_log_or_a_list_of_jobs(demo):
    keys = json.loads((ROOT / ".demo" / "keys.json").read_text())
    ray = Path(json.loads((ROOT / ".demo" / "state.json").read_text())["ray"], "session_latest", "logs")
    written = [
        file for folder in (ROOT / ".demo" / "s3" / "mapsto", ray) for file in folder.rglob("*") if file.is_file()
    ]
    assert len(written) > 50
    for file in [ROOT / ".demo" / "report.html", ROOT / ".demo" / "s3.log", *written]:
        assert not [name for name, key in keys.items() if key.encode() in file.read_bytes()], file
    listed = requests.get(f"{HEAD}/api/jobs/", timeout=30).text
    assert not [name for name, key in keys.items() if key in demo + listed]


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


@pytest.fixture
def mine(demo, tmp_path):
    """A user's folder, with images, a recipe and a few new images, beside the demo's cluster with nothing served on it.

    Yields the folder, and a function that runs a command there, or in another folder, and returns what it said.
    """
    keys = json.loads((ROOT / ".demo" / "keys.json").read_text())
    user = {
        "AWS_ACCESS_KEY_ID": keys["key"], "AWS_SECRET_ACCESS_KEY": keys["secret"], "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9321", "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip

    def run(command: str, folder: Path = tmp_path, **more: str) -> str:
        done = shell(f"cd {ROOT}; {ACTIVATE}; cd {folder}; {command}", folder, 300, **user, **more)
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    run("serve shutdown --yes", RAY_DASHBOARD_ADDRESS=HEAD)
    write(tmp_path / "images", 120, 3, (96, 96), splits={"train": 0.6, "val": 0.2, "test": 0.2})
    (tmp_path / "flowers.yaml").write_text(RECIPE.format(source=tmp_path / "images"))
    (tmp_path / "new-images").mkdir()
    for number in range(3):
        (tmp_path / "new-images" / f"{number}.jpg").write_bytes(encode(numbered(5, number, (96, 96)).image))
    shutil.copy(tmp_path / "new-images" / "0.jpg", tmp_path / "image.jpg")
    return tmp_path, run


def test_ones_own_recipe_goes_as_the_readme_says(mine):
    folder, run = mine
    activate, check, all_stages, train, predict, ask = commands("Your own images", 1)
    assert activate == ACTIVATE
    local = {"RAY_ADDRESS": "127.0.0.1:6399"}
    assert "# train" in run(check, **local)
    said = run(all_stages, **local)
    for stage in ("ingest train", "train", "evaluate", "compress", "serve"):
        assert re.search(rf"^{stage}: done", said, re.MULTILINE), said
    said = run(train, **local)
    assert "ingest train: reused" in said and "\ntrain: done" in said
    assert "predict: done" in (said := run(predict, **local)) and "rows 3, errors 0" in said
    assert json.loads(run(ask))["predictions"][0]["label"] in CLASSES

    run_there, list_them, as_ray, deploy = (
        line.replace("http://ray-head:8265", HEAD) for line in commands("Your own cluster")
    )
    said = run(run_there)
    assert "compress: reused" in said and "flowers answers at http://127.0.0.1:8000/v1/models/flowers:predict" in said
    assert re.search(r"SUCCEEDED .* python -m mapsto run recipe\.yaml", run(list_them))
    said = run(as_ray.replace("jobs/classification/cifar10.yaml", str(folder / "flowers.yaml")), ROOT)
    assert "train: reused" in said and "succeeded" in said
    written = next((ROOT / ".demo" / "s3" / "mapsto" / "flowers" / "serve").glob("*/serve.yaml"))
    shutil.copy(written, folder / "serve.yaml")
    run("serve shutdown --yes", RAY_DASHBOARD_ADDRESS=HEAD)
    run(deploy, RAY_DASHBOARD_ADDRESS=HEAD)
    deadline = time.monotonic() + 120
    while "predictions" not in (said := shell(ask, folder, 60).stdout):
        assert time.monotonic() < deadline, said
        time.sleep(1)


def test_the_demo_again_and_with_ones_own_bucket(demo, s3):
    again = shell("make demo", ROOT, 600)
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    assert "train: reused" in again.stdout
    assert re.search(r"\d+ of 40 fresh photographs right", again.stdout)
    write(s3.folder / "own" / "images", 160, 4, (96, 96))
    (own, *_) = commands("Your own images")
    theirs = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret}
    own = shell(own.replace("/path/to/images", "s3://own/images"), ROOT, 600, **theirs)
    assert own.returncode == 0, own.stdout[-4000:] + own.stderr[-4000:]
    assert re.search(r"\d+ of \d+ images of the test split right, over HTTP", own.stdout)
    assert "/v1/models/own-images:predict" in own.stdout
