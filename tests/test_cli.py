"""The command line as a user types it: what it prints, its exit codes, how fast it answers, and that it leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mapsto import cli
from mapsto.core.errors import UserError
from mapsto.core.registry import STAGES, TASKS

RECIPE = """\
name: tiny
root: {root}
data: {{train: {{source: /nowhere/images}}}}
task: {{kind: classify, image_size: 32}}
train: {{epochs: 1, workers: 2, cpus_per_worker: 0.5}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(root=tmp_path / "artifacts"))
    return file


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mapsto", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_check_prints_a_recipe_that_loads_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(recipe), "--set", "train.epochs=3"]) == 0
    shown = capsys.readouterr().out
    assert "epochs: 3" in shown
    assert "# train        2 CPUs" in shown
    recipe.write_text(shown)
    assert cli.main(["check", str(recipe)]) == 0
    assert capsys.readouterr().out == shown


def test_an_error_is_one_line_on_standard_error_and_exit_code_2(recipe: Path) -> None:
    done = run("check", str(recipe), "--set", "train.epocs=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--set train.epocs=3: unknown field, did you mean 'epochs'?\n"


def test_a_bug_shows_its_traceback(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapsto.config.load.describe", lambda recipe: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check", str(recipe)])


def test_interrupted(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapsto.config.load.load", stop)
    assert cli.main(["check", str(recipe)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"


def test_tasks_shows_every_task_and_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"| task | {' | '.join(STAGES)} | what it is |"
    assert [line.split(" | ")[0] for line in lines[2 : 2 + len(TASKS)]] == [f"| {kind}" for kind in TASKS]
    assert cli.main(["tasks"]) == 0


@pytest.mark.parametrize("arguments", [["submit", "train", "RECIPE"], ["job", "list"]])
def test_no_cluster_given(
    arguments: list[str], recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert cli.main([a.replace("RECIPE", str(recipe)) for a in arguments]) == 2
    assert capsys.readouterr().err == "which cluster? give --address http://HEAD:8265, the address of its dashboard\n"


def test_submit_hands_on_what_a_stage_is_told(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mapsto.runtime import jobs

    given: list[str] = []
    monkeypatch.setattr(jobs, "submit", lambda verb, text, words, *_, **__: given.extend([verb, *words]) or 0)
    words = ["--layout", "coco", "--role", "train", "--force", "--set", "train.epochs=7"]
    assert cli.main(["submit", "ingest", str(recipe), *words]) == 0
    told = cli._parser().parse_args(["ingest", "recipe.yaml", *given[1:]])
    assert (given[0], told.layout, told.role, told.force) == ("ingest", "coco", "train", True)
    assert told.overrides == ["train.epochs=7"]


def test_unreachable_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["job", "list", "--address", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err == (
        "http://127.0.0.1:9: no Ray dashboard answers there; is the cluster up, and the address its dashboard's?\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["check", "RECIPE"], ["tasks"], ["schema"]])
def test_quick_commands_load_neither_ray_nor_torch(arguments: list[str], recipe: Path) -> None:
    words = [a.replace("RECIPE", str(recipe)) for a in arguments]
    program = (
        "import sys\nfrom mapsto.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('ray', 'torch', 'timm', 'pyarrow', 'matplotlib', 'onnx', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_stage_options_reach_the_pipeline(recipe: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "mapsto.stages.pipeline.produce",
        lambda recipe, stage, options, force, say: seen.append((stage, options, force)),
    )
    monkeypatch.setattr(
        "mapsto.stages.pipeline.run_all", lambda recipe, until, force, say: seen.append(("run", until, force))
    )
    assert cli.main(["ingest", str(recipe), "--force"]) == 0
    assert (
        cli.main(
            [
                "predict",
                str(recipe),
                "a.jpg",
                "s3://b/c/",
                "--count",
                "2",
                "--output",
                "s3://b/out",
                "--with",
                "alpha=1",
            ]
        )
        == 0
    )
    assert cli.main(["train", str(recipe)]) == 0
    assert cli.main(["run", str(recipe), "--until", "evaluate"]) == 0
    here = str(Path("a.jpg").resolve())
    assert seen == [
        ("ingest", {"role": "train"}, True),
        (
            "predict",
            {"inputs": [here, "s3://b/c/"], "output": "s3://b/out", "count": 2, "fields": {"alpha": "1"}},
            False,
        ),
        ("train", {}, False),
        ("run", "evaluate", False),
    ]
    assert cli.main(["ingest", str(recipe), "--role", "style"]) == 2


def test_a_layout_on_the_command_line_is_the_recipes(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(
        "mapsto.runtime.session.connected", lambda *_, **__: contextlib.nullcontext(SimpleNamespace(private=False))
    )
    monkeypatch.setattr(
        "mapsto.stages.pipeline.produce",
        lambda recipe, stage, options, **more: seen.append({name: data.layout for name, data in recipe.data.items()}),
    )
    assert cli.main(["ingest", str(recipe)]) == 0
    assert cli.main(["ingest", str(recipe), "--layout", "coco"]) == 0
    assert seen == [{"train": "auto"}, {"train": "coco"}]
    assert cli.main(["ingest", str(recipe), "--layout", "coca"]) == 2
    assert "coco" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["ingest"], False),
        (["train"], False),
        (["tune"], True),
        (
            ["train", "--set", "tune={workers: 1, trials: 2, space: {train.seed: {kind: choice, values: [1, 2]}}}"],
            False,
        ),
        (["train", "--set", "tune={workers: 2, trials: 2, space: {train.seed: {kind: choice, values: [1, 2]}}}"], True),
    ],
)
def test_only_commands_that_need_it_start_the_dashboard(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], shown: bool
) -> None:
    seen: list[object] = []

    def connected(*_: object, dashboard: bool, **__: object):
        seen.append(dashboard)
        return contextlib.nullcontext(SimpleNamespace(private=False))

    monkeypatch.setattr("mapsto.runtime.session.connected", connected)
    monkeypatch.setattr("mapsto.stages.pipeline.produce", lambda *_, **__: SimpleNamespace())
    assert cli.main([command[0], str(recipe), *command[1:]]) == 0
    assert seen == [shown]


def test_a_user_error_inside_a_ray_task_is_one_line(
    recipe: Path, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    import ray

    @ray.remote
    def fail() -> None:
        raise UserError("s3://x: the bucket does not exist")

    monkeypatch.setattr("mapsto.stages.pipeline.produce", lambda *_, **__: ray.get(fail.remote()))
    assert cli.main(["train", str(recipe)]) == 2
    assert capsys.readouterr().err == "s3://x: the bucket does not exist\n"


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_leaves_no_process_and_no_folder(
    kind: signal.Signals, code: int, recipe: Path, tmp_path: Path
) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which tests run in the background have ignored
        "from mapsto import cli\nfrom mapsto.stages import pipeline\n"
        "def produce(*_, **__):\n"
        "    import os, ray\n"
        "    from mapsto.runtime import session\n"
        "    @ray.remote\n    def nap():\n        time.sleep(600)\n"
        "    nap.remote()\n"
        "    print('READY', *session._guards, flush=True)\n"
        "    time.sleep(600)\n"
        "pipeline.produce = produce\n"
        f"sys.exit(cli.main(['train', {str(recipe)!r}, '--cpus', '1']))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = tmp_path / "out"
    with log.open("wb") as out:
        process = psutil.Popen(
            [sys.executable, "-c", program],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240  # Ray starts in 5 s, on a machine that is overloaded in minutes
        while b"READY" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        folder = Path(next(line for line in log.read_text().splitlines() if line.startswith("READY")).split()[1])
        started = process.children(recursive=True)
        assert len(started) > 3
        if kind is signal.SIGINT:
            os.killpg(process.pid, kind)  # as a terminal does
        else:
            process.terminate()
        assert process.wait(timeout=60) == code
        _, alive = psutil.wait_procs(started, timeout=10)
        assert not alive, [each.cmdline() for each in alive]
        assert not folder.exists()
    finally:
        if process.poll() is None:
            process.kill()
