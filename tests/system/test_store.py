"""A real object store (Debian's Ceph with its S3 gateway) in place of the tests' usual server: listing by pages,
uploads in parts, refused keys, and a whole run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import boto3
import numpy as np
import pytest

from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.scenes import write

pytestmark = pytest.mark.system
KEY, SECRET = "mapsto-store", "mapsto-store-secret"
CONFIG = """[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon}/0
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms client mode = crc
ms mon client mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
mon allow pool size one = true
mon data avail crit = 1
osd crush chooseleaf type = 0
run dir = {folder}
admin socket = {folder}/$cluster-$name.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
[osd]
bluestore block size = 4294967296
osd memory target = 939524096
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One monitor, one object daemon and one gateway on loopback, as Ceph's manual deployment has it."""
    for program in ("ceph-mon", "ceph-osd", "radosgw"):
        assert shutil.which(program), f"Debian's {program} is missing: .ci/run installs it"
    folder = tmp_path_factory.mktemp("ceph")
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    mon, port = free_port(), free_port()
    config = folder / "ceph.conf"
    config.write_text(CONFIG.format(fsid=(fsid := uuid.uuid4()), mon=mon, folder=folder))
    started: list[subprocess.Popen[bytes]] = []

    def once(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [program, "-c", str(config), *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr[-2000:]}"

    def start(program: str, *arguments: str) -> None:
        with (folder / f"{program}.out").open("wb") as log:
            command = [program, "-c", str(config), "-f", *arguments]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))

    try:
        monmap, osd = str(folder / "monmap"), str(uuid.uuid4())
        once("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon}]", "--fsid", str(fsid), monmap)
        once("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        start("ceph-mon", "-i", "a")
        once("ceph", "osd", "new", osd)
        once("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        gateway = ("--no-mon-config", "-n", "client.admin")
        start("radosgw", *gateway, "--rgw-frontends", f"beast endpoint=127.0.0.1:{port}")
        _wait(port, started[-1], folder)
        once(
            "radosgw-admin", *gateway, "user", "create", "--uid=mapsto", "--display-name=mapsto",
            f"--access-key={KEY}", f"--secret-key={SECRET}",
        )  # fmt: skip
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, (folder / "radosgw.out").read_text()[-2000:]
        time.sleep(0.2)
    raise AssertionError(f"the gateway did not come up: {(folder / 'radosgw.out').read_text()[-2000:]}")


@pytest.fixture
def storage(store, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # Debian's gateway knows no trailing ones
    client = boto3.client(
        "s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )
    client.create_bucket(Bucket="bucket")  # again is no error: it is ours
    return Storage(endpoint_url=store, region="us-east-1", key=KEY, secret=SECRET)


def test_more_names_than_a_page_holds(storage):
    for number in range(1203):  # a page of a listing has 1,000 at most
        storage.write(f"s3://bucket/many/{number % 7}/{number:05d}", b"x")
    names = [uri for uri, _ in storage.walk("s3://bucket/many")]
    assert len(names) == 1203 == len(set(names))
    storage.delete("s3://bucket/many")
    assert list(storage.walk("s3://bucket/many")) == []


def test_a_large_object_goes_up_in_parts_and_comes_back(storage, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 70 * 2**20, np.uint8).tobytes()
    (tmp_path / "large").write_bytes(data)
    storage.upload(tmp_path / "large", "s3://bucket/large")
    storage.download("s3://bucket/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert storage.read_range("s3://bucket/large", 50_000_001, 50_000_101) == data[50_000_001:50_000_101]


def test_refused_keys_and_missing_buckets_are_one_line(store, storage):
    wrong = Storage(endpoint_url=store, region="us-east-1", key=KEY, secret="not-this-one", retries=1)
    for uri, given in (("s3://bucket/many", wrong), ("s3://no-such-bucket/x", storage)):
        with pytest.raises(UserError) as told:
            list(given.walk(uri))
        assert "\n" not in str(told.value) and uri.split("/")[2] in str(told.value)
        assert "not-this-one" not in str(told.value)


def test_a_whole_run_on_it(store, storage, tmp_path):
    counts = write(tmp_path / "images", 96, 5, (48, 48), splits={"train": 0.7, "val": 0.15, "test": 0.15}, spoiled=2)
    for file in sorted(path for path in (tmp_path / "images").rglob("*") if path.is_file()):
        storage.upload(file, f"s3://bucket/images/{file.relative_to(tmp_path / 'images')}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: real\nroot: s3://bucket/artifacts\ndata: {train: {source: s3://bucket/images}}\n"
        "task: {kind: classify, image_size: 32, model: {name: airbench_tiny}}\n"
        "train: {epochs: 2, batch_size: 16, workers: 1, cpus_per_worker: 0.5}\n"
        "compress: {max_drop: 100, repeats: 5, steps: [{kind: export}, {kind: quantize, calibration: 16}]}\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))} | {
        "AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }  # fmt: skip

    def run() -> str:
        command = [sys.executable, "-m", "mapsto", "run", str(recipe), "--until", "compress", "--cpus", "3"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    first, second = run(), run()
    for stage in ("ingest train", "train", "evaluate", "compress"):
        assert f"{stage}: done" in first
        assert f"{stage}: reused" in second
    manifests = [uri for uri, _ in storage.walk("s3://bucket/artifacts/real/ingest") if uri.endswith("artifact.json")]
    metrics = json.loads(storage.read(manifests[0]))["metrics"]
    assert metrics["images"] == counts["images"] and metrics["quarantined"] == 2
