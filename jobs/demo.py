"""`make demo`: S3 server, Ray cluster, drawn photographs, the whole recipe as a Ray job, and a few questions to what it serves.

What it starts listens on loopback (but for the fast ingress's statistics and replicas, SECURITY.md) and is kept track of in
`.demo/state.json`; `make stop` ends it by process id.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import requests

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from mapsto.data.scenes import CLASSES, draw, write
from mapsto.runtime.leftovers import belonging, end

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / ".demo"
RECIPE = HERE / "classification" / "demo.yaml"
COUNT, SIZE, SEED = 1200, (96, 96), 1
MARK = "MAPSTO_DEMO"
"""In the environment of all that `ray start` starts: the command of some does not tell whose they are."""
S3_PORT, DASHBOARD_PORT, AGENT_PORT, GCS_PORT, SERVE_PORT = 9321, 8265, 8266, 6399, 8000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="your own images: a folder, or an s3:// URI, with a folder per class")
    parser.add_argument("--stop", action="store_true", help="end what an earlier demo started")
    arguments = parser.parse_args()
    try:
        own = _own(arguments.data) if arguments.data else []
    except UserError as error:  # said before anything is started, or an earlier demo ended
        print(error, file=sys.stderr)
        return 2
    try:
        stop()
        if not arguments.stop:
            demo(arguments.data, own)
    except UserError as error:
        print(error, file=sys.stderr)
        stop()
        return 2
    except KeyboardInterrupt:
        stop()
        return 130
    except BaseException:
        stop()
        raise
    return 0


def demo(data: str | None, own: list[str]) -> None:
    """`own`: what the recipe is to be told of the user's data."""
    start = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    for port, what in (
        (S3_PORT, "S3 server"),
        (DASHBOARD_PORT, "Ray dashboard"),
        (GCS_PORT, "Ray"),
        (SERVE_PORT, "endpoint"),
        (AGENT_PORT, "Ray dashboard's agent"),
    ):
        _free(port, what)
    if data is None:
        _draw()
    environment = _environment(data)
    _start_s3(environment)
    _start_ray(environment)
    run = [
        sys.executable,
        "-m",
        "mapsto",
        "submit",
        "run",
        str(RECIPE),
        "--address",
        f"http://127.0.0.1:{DASHBOARD_PORT}",
    ]
    settings = [f"serve.port={SERVE_PORT}", *own]
    done = subprocess.run([*run, *(part for s in settings for part in ("--set", s))], env=environment, check=False)
    if done.returncode:
        raise UserError(f"the job failed (exit code {done.returncode}); its lines are above")
    name = "own-images" if data else "demo"
    os.environ.update({k: environment[k] for k in environment if k.startswith("AWS_")})
    report = FOLDER / "report.html"
    Storage().download(f"s3://mapsto/{name}/report.html", report)
    endpoint = f"http://127.0.0.1:{SERVE_PORT}/v1/models/{name}:predict"
    _ask(endpoint, data)
    print(f"""
It took {time.monotonic() - start:.0f} s. Now open:
  report     file://{report}
  endpoint   curl --data-binary @image.jpg -H 'Content-Type: image/jpeg' {endpoint}
  dashboard  http://127.0.0.1:{DASHBOARD_PORT}
To end all of it: make stop""")


def _draw() -> None:
    images = FOLDER / "s3" / "images" / "scenes"
    asked = {"count": COUNT, "size": list(SIZE), "seed": SEED}
    drawn = FOLDER / "drawn.json"
    if drawn.exists() and json.loads(drawn.read_text()) == asked:
        return
    shutil.rmtree(images, ignore_errors=True)
    splits = {"train": 0.7, "val": 0.15, "test": 0.15}
    counts = write(images, COUNT, SEED, SIZE, splits=splits, spoiled=4, processes=os.cpu_count() or 1)
    drawn.write_text(json.dumps(asked))
    print(
        f"drew {counts['images']} photographs of {len(counts['classes'])} classes, and {counts['spoiled']} spoiled files"
    )


def _environment(data: str | None) -> dict[str, str]:
    """The keys are made once and kept, readable by their owner only; a user's own AWS settings move aside for DATA."""
    file = FOLDER / "keys.json"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(json.dumps({"key": secrets.token_hex(10), "secret": secrets.token_hex(20)}))
    keys = json.loads(file.read_text())
    aside = {f"MAPSTO_DATA_{k}": v for k, v in (_own_store() if (data or "").startswith("s3://") else {}).items()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    return (
        kept
        | aside
        | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": keys["key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret"],
            "AWS_REGION": "us-east-1",
            "RAY_AUTH_MODE": "disabled",  # everything is on loopback; a shared machine wants `token`
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: keeps Ray from taking the outward address for 127.0.0.1
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(HERE.parent / "platform"),
        }
    )


def _start_s3(environment: dict[str, str]) -> None:
    for bucket in ("images", "mapsto"):
        (FOLDER / "s3" / bucket).mkdir(parents=True, exist_ok=True)
    keys = f'"{environment["AWS_ACCESS_KEY_ID"]},{environment["AWS_SECRET_ACCESS_KEY"]}"'  # quoted: rclone splits the variable at commas
    command = [
        "rclone",
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{S3_PORT}",
        "--vfs-cache-mode",
        "off",
        "--dir-cache-time",
        "24h",
        str(FOLDER / "s3"),
    ]
    with (FOLDER / "s3.log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment | {"RCLONE_AUTH_KEY": keys}, stdout=log, stderr=log, start_new_session=True
        )
    _remember(s3=server.pid)
    _wait(S3_PORT, "the S3 server", FOLDER / "s3.log")
    print(f"S3 server on http://127.0.0.1:{S3_PORT}")


def _start_ray(environment: dict[str, str]) -> None:
    folder = tempfile.mkdtemp(prefix="mapsto", dir="/tmp")  # short: socket paths have a length limit
    _remember(ray=folder)
    command = [
        "ray",
        "start",
        "--head",
        "--node-ip-address",
        "127.0.0.1",
        "--port",
        str(GCS_PORT),
        "--dashboard-host",
        "127.0.0.1",
        "--dashboard-port",
        str(DASHBOARD_PORT),
        "--temp-dir",
        folder,
        "--disable-usage-stats",
        "--dashboard-agent-listen-port",
        str(AGENT_PORT),
    ]
    marked = environment | {MARK: folder}
    done = subprocess.run(command, env=marked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Ray did not start: {done.stderr.strip() or done.stdout.strip()}")
    _wait(DASHBOARD_PORT, "the Ray dashboard", Path(folder))
    print(f"Ray cluster, its dashboard on http://127.0.0.1:{DASHBOARD_PORT}")


def _own(data: str) -> list[str]:
    settings = ["name=own-images", "serve.name=own-images", "compress.max_drop=2", "task.image_size=96"]
    if "://" not in data:
        folder = Path(data).expanduser().resolve()
        if not folder.exists():
            raise UserError(f"DATA={data}: no such folder")
        return [*settings, f"data.train.source={folder}"]
    settings.append(f"data.train.source={data}")
    if data.startswith("s3://"):
        store = _own_store()
        settings += [f"data.train.storage.{name.lower()}=${{env:MAPSTO_DATA_{name}}}" for name in store]
        settings += [] if "KEY" in store else ["data.train.storage.anonymous=true"]
    return settings


def _own_store() -> dict[str, str]:
    """Where the user's own S3 is and its keys, as botocore finds them: in the environment, a profile, or a machine's role.
    The demo's own S3 takes their usual names in the job's environment."""
    import botocore.session

    session = botocore.session.get_session()
    region = session.get_config_variable("region") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    found = {"ENDPOINT_URL": endpoint or f"https://s3.{region}.amazonaws.com", "REGION": region}
    if keys := session.get_credentials():
        frozen = keys.get_frozen_credentials()
        given = {"KEY": frozen.access_key, "SECRET": frozen.secret_key, "TOKEN": frozen.token}
        found |= {name: value for name, value in given.items() if value}
    return found


def _ask(endpoint: str, data: str | None) -> None:
    """Fresh images, drawn from a seed that the data set never used; of a user's own set, what is in it."""
    import numpy as np

    if data is not None:
        _ask_own(endpoint)
        return
    right, total = 0, 40
    for number in range(total):
        scene = draw(np.random.default_rng([9_000, number]), SIZE, CLASSES)
        answer = requests.post(endpoint, encode(scene.image), headers={"Content-Type": "image/jpeg"}, timeout=30)
        answer.raise_for_status()
        best = answer.json()["predictions"][0]
        right += best["label"] == scene.label
        if number < 4:
            print(f"asked: {scene.caption!r} -> {best['label']} ({best['probability']:.0%})")
    print(f"{right} of {total} fresh photographs right")


def _ask_own(endpoint: str) -> None:
    """The test split's first images: the ones that the model has neither learned from nor been chosen by."""
    model = requests.get(endpoint.removesuffix(":predict"), timeout=30).json()
    parents = Artifact(model["artifact"], Storage()).meta()["parents"]
    rows = Dataset.open(Artifact(parents["data.train"]["uri"], Storage()))
    right = total = 0
    for row in rows.read("test", ["image", "label"], 40):
        answer = requests.post(endpoint, row["image"], timeout=30)
        answer.raise_for_status()
        total += 1
        right += answer.json()["predictions"][0]["label"] == model["classes"][row["label"]]
    print(f"{right} of {total} images of the test split right, over HTTP")


def stop() -> None:
    """End what an earlier demo started, by process id; the images and artifacts in `.demo` stay."""
    file = FOLDER / "state.json"
    if not file.exists():
        return
    state = json.loads(file.read_text())
    mine = belonging(state["ray"]) if "ray" in state else []
    with suppress(KeyError, psutil.NoSuchProcess):
        server = psutil.Process(state["s3"])
        mine += [server] if server.name() == "rclone" else []
    end(mine)
    shutil.rmtree(state.get("ray", ""), ignore_errors=True)
    file.unlink()
    print("the demo's processes are ended")


def _remember(**values: object) -> None:
    file = FOLDER / "state.json"
    state = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(state | values))


def _free(port: int, what: str, seconds: float = 10) -> None:
    """Raises UserError when the port stays busy: the ingress of a demo that was just ended drains for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"port {port} on 127.0.0.1 is busy, the {what} needs it: end what holds it (an earlier demo: make stop)"
                    ) from error
            else:
                return
        time.sleep(0.2)


def _wait(port: int, what: str, log: Path, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise UserError(f"{what} did not come up within {seconds:.0f} s; see {log}")


if __name__ == "__main__":
    sys.exit(main())
