"""Jobs on the session's cluster, through its dashboard, with its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mapsto import cli
from mapsto.core.errors import UserError
from mapsto.runtime import jobs, session

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "name: tiny\nroot: /tmp/mapsto-unused\ndata: {train: {source: /nowhere/images}}\ntask: {kind: classify, image_size: 32}\n"


@pytest.fixture(scope="module")
def dashboard(cluster: str) -> str:
    """The URL, once jobs can be submitted there: Ray's own command line does not wait for that."""
    url = session.connect().dashboard
    assert url
    assert jobs.submit("check", RECIPE, ["--set", "train.epochs=7"], url) == 0
    return url


def test_output_and_exit_code_come_through(dashboard: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong setting, found on the cluster: its one line, and exit code 2. (A right one is the fixture's.)"""
    assert jobs.submit("check", RECIPE, ["--set", "train.epocs=1"], dashboard) == 2
    assert "--set train.epocs=1: unknown field, did you mean 'epochs'?\n" in capfd.readouterr().out


def test_ray_s_own_command_line(dashboard: str, tmp_path: Path) -> None:
    """`ray job submit` as its own users type it, from a checkout, where no mapsto is installed."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("root:", "rot:"))
    words = ["job", "submit", "--address", dashboard, "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), *words, "--", "python", "jobs/run.py", str(recipe)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"{recipe}:2: rot: unknown field, did you mean 'root'?" in done.stdout + done.stderr


def test_submit_list_status_logs_stop(dashboard: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    # Its images are nowhere: the stage fails on the cluster, or is stopped before it can.
    assert cli.main(["submit", "ingest", str(recipe), "--no-wait", "--address", dashboard]) == 0
    job = capfd.readouterr().out.split()[1]
    assert cli.main(["job", "list", "--address", dashboard]) == 0
    listed = next(line for line in capfd.readouterr().out.splitlines() if line.startswith(job))
    assert "mapsto ingest recipe.yaml" in listed
    assert cli.main(["job", "stop", job, "--address", dashboard]) == 0
    assert capfd.readouterr().out.split()[1].strip(",:") in ("STOPPED", "FAILED")
    assert cli.main(["job", "status", job, "--address", dashboard]) == 0
    assert cli.main(["job", "logs", job, "--address", dashboard]) == 0


def test_unknown_job(dashboard: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "logs", "stop"):
        assert cli.main(["job", verb, "raysubmit_none", "--address", dashboard]) == 2
        assert capsys.readouterr().err == f"{dashboard}: no job raysubmit_none\n"


def test_refused_token(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled",
        lambda headers: {"Authorization": "Bearer no"},
    )
    with pytest.raises(UserError, match="token refused; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"):
        jobs.listing(dashboard)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_the_address_is_a_dashboard_s(address: str) -> None:
    with pytest.raises(UserError, match=r"jobs go to the dashboard's address, http://HEAD:8265"):
        jobs.listing(address)
