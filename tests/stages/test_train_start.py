"""Train without Ray: weights from elsewhere, no epochs at all, SIGTERM, early stopping, and the run's bottleneck."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mapsto.config.load import load, portable
from mapsto.config.schema import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.item import Item
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.data import order
from mapsto.engine.checkpoints import Checkpoints
from mapsto.engine.stopping import EarlyStop
from mapsto.serving.runtimes import open_runtime
from mapsto.stages.given import open_given
from mapsto.stages.train import Train, alone, conclude, kept
from mapsto.stages.train_page import page
from mapsto.stages.train_time import bottleneck
from mapsto.stages.train_worker import drained, same_rows

from . import fakes

CONFIG: dict[str, Any] = {
    "epochs": 3, "batch_size": fakes.BATCH, "optimizer": {"lr": 0.05}, "deterministic": True, "threads": 1
}  # fmt: skip
TEXT = """\
name: a
root: ROOT
data: {train: {source: /tmp/images}}
task: {kind: classify, image_size: 16, model: {name: airbench}}
"""


def recipe(folder: Path, **more: str) -> Any:
    return load(TEXT.replace("ROOT", str(folder)) + "".join(f"{k}: {v}\n" for k, v in more.items()))


def job(setup: Any, said: list[str]) -> Job:
    return Job(recipe(Path("/tmp")), {}, {}, setup.artifact, Storage(), False, {}, said.append)


def trained(folder: Path, config: dict[str, Any] = CONFIG) -> Any:
    setup = fakes.setup(folder, fakes.source, config)
    alone(setup, lambda record: None)
    return setup


def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    trained(tmp_path / "whole")

    def killed(setup: Any, world: Any, share: Any, start: int, first: int) -> Any:
        items, steps = fakes.source(setup, world, share, start, first)

        def sent() -> Iterator[Any]:
            for item, batch in items:
                if item.step == steps + 1 and start == 0:
                    signal.raise_signal(signal.SIGTERM)
                yield item, batch

        return sent(), steps

    before = signal.getsignal(signal.SIGTERM)
    setup = fakes.setup(tmp_path / "cut", killed, CONFIG)
    with pytest.raises(UserError, match=r"asked to end; saved after step 6 \(epoch 2\), and the same command"):
        alone(setup, lambda record: None)
    assert signal.getsignal(signal.SIGTERM) == before
    alone(setup, lambda record: None)
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    taken = (tmp_path / "cut/taken/0").read_text().split("\n")
    assert [line.split(" ", 1)[1] for line in taken if line] == [
        line.split(" ", 1)[1] for line in (tmp_path / "whole/taken/0").read_text().split("\n") if line
    ]  # no step lost or repeated


@pytest.mark.parametrize("epoch", [0, 1])
def test_sigterm_saves_between_epochs_of_one_step(tmp_path: Path, epoch: int) -> None:
    def single(setup: Any, world: Any, share: Any, start: int, first: int) -> Any:
        def items() -> Iterator[Any]:
            for number in range(start, 3):
                if number == epoch and start == 0:
                    signal.raise_signal(signal.SIGTERM)
                yield Item("train", number, number, 0, True, True), fakes.rows(np.arange(8))
                yield Item("val", number, number + 1, 0, False, True), fakes.rows(np.arange(8))

        return items(), 1

    setup = fakes.setup(tmp_path, single, CONFIG)
    with pytest.raises(UserError, match=rf"asked to end; saved after step {epoch + 1} "):
        alone(setup, lambda record: None)
    alone(setup, lambda record: None)
    assert [json.loads(text)["epoch"] for text in (tmp_path / "history.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_checkpoints_within_an_epoch_lose_few_steps_to_a_killed_driver(tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    config = {**CONFIG, "checkpoint_steps": 3, "keep": 9}
    setup = fakes.setup(tmp_path / "cut", fakes.cut_off, config)
    with pytest.raises(ConnectionError):
        alone(setup, lambda record: None)  # before step 9
    steps = [int(name.split("-")[1]) for name, _ in Checkpoints(setup.artifact, 9, "max").complete()]
    assert steps == [3, 4, 6, 8, 9]
    alone(setup, lambda record: None)
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_checkpoint_steps_that_divide_the_epoch_leave_its_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, bool]] = []
    save = Checkpoints.save

    def seen(self: Checkpoints, data: bytes, epoch: int, step: int, score: float | None) -> str:
        saved.append((step, score is not None))
        return save(self, data, epoch, step, score)

    monkeypatch.setattr(Checkpoints, "save", seen)
    trained(tmp_path / "each", {**CONFIG, "checkpoint_steps": 2})
    assert saved == [(2, False), (4, True), (6, False), (8, True), (10, False), (12, True)]
    saved.clear()
    trained(tmp_path / "second", {**CONFIG, "checkpoint_steps": 4, "checkpoint_every": 2})
    assert saved == [(4, True), (8, True), (12, True)]


def test_what_early_stopping_kept_is_told_by_its_own_measure() -> None:
    config = TrainConfig(early_stop={"patience": 9, "min_delta": 0.01})  # type: ignore[arg-type]
    scores = [float("nan"), 0.8, 0.805, 0.808, 0.7]
    history = [{"epoch": float(k), "val/top1": score} for k, score in enumerate(scores)]
    stop = EarlyStop(config.early_stop, "max")  # type: ignore[arg-type]
    for record in history:
        stop.update(record["val/top1"], {})
    assert kept(history, config, "top1", "max")["val/top1"] == stop.best == 0.8


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "whole")
    write = Storage.write

    def full(self: Storage, uri: str, data: bytes, sha256: str | None = None) -> None:
        if "checkpoints/00002" in uri:
            write(self, uri + ".part", data[:100])  # what such a disk may leave behind
            raise UserError(f"{uri}: no space left on the disk")
        write(self, uri, data, sha256)

    monkeypatch.setattr(Storage, "write", full)
    said: list[str] = []
    setup = fakes.setup(tmp_path / "full", fakes.source, {**CONFIG, "keep": 9})
    alone(setup, lambda record: None, said.append)
    (line,) = said
    assert line.startswith("train: checkpoint after step 8 was not written: ")
    assert line.endswith("no space left on the disk")
    assert [int(name[:5]) for name, _ in Checkpoints(setup.artifact, 9, "max").complete()] == [1, 3]
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "whole"))
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_a_notice_of_ray_is_taken_once_and_asked_for_by_all_ranks_alike() -> None:
    answers, asked, agreed = ([None, None, "node a", "node a", "node b"], [], [])
    now = 0.0

    def info() -> str | None:
        asked.append(step)
        return answers[len(asked) - 1]

    first = drained(info, lambda value: agreed.append(value) or value, lambda: now)
    other = drained(lambda: None, lambda value: agreed[-1], lambda: 99 * now)  # rank 0 decides for it
    told = []
    step = 0
    for seconds in (9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 8.0, 0.1, 0.1, 2.0):
        step, now = step + 1, now + seconds
        told.append(first())
        other()
    assert asked == [1, 2, 4, 8, 9]  # the first, slow one; one later; of 1 s, 2 and 4 later; 1 of 2.5 s
    assert [step for step, heard in enumerate(told, 1) if heard] == [4, 9]


def test_quick_steps_are_asked_for_every_five_seconds_and_one_of_them_puts_nothing_off() -> None:
    def asked(seconds: list[float]) -> list[float]:
        now, when = 0.0, []
        notice = drained(lambda: when.append(now), clock=lambda: now)
        for each in seconds:
            now += each
            notice()
        return when

    quick = asked([0.005] * 20_000)
    assert len(quick) < 100 / 5 + 12  # 1, 2, 4, ... up to 1,000 steps, and then each 5 s
    assert max(np.diff(quick)) <= 5.001
    assert asked([0.001, *[5.0] * 10])[:4] == pytest.approx([0.001, 10.001, 15.001, 20.001])


@pytest.mark.parametrize("of", ["artifact", "file", "pth"])
def test_no_epochs_make_an_artifact_of_the_given_weights(tmp_path: Path, of: str) -> None:
    first = trained(tmp_path / "train" / "first", {**CONFIG, "epochs": 1})
    conclude(job(first, []), first, 1.0)
    first.artifact.finish(section={}, parents={}, metrics={}, digest="d")
    weights = load_file(tmp_path / "train/first/model.safetensors")
    uri = {
        "artifact": first.artifact.uri,
        "file": f"{first.artifact.uri}/model.safetensors",
        "pth": f"{tmp_path}/w.pth",
    }[of]
    torch.save({"module." + k: torch.from_numpy(v) for k, v in weights.items()}, tmp_path / "w.pth")
    second = fakes.setup(tmp_path / "train" / "second", fakes.broken, {"epochs": 0, "init": {"weights": uri}})
    if of == "artifact":
        second.parents["train.init.weights"] = open_given(uri, Storage())
    alone(second, lambda record: pytest.fail("nothing is to be trained"))
    for name, value in load_file(tmp_path / "train/second/model.safetensors").items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    said: list[str] = []
    done = conclude(job(second, said), second, 1.0)
    assert done.metrics["epochs"] == 0
    assert said[0].startswith(f"init: {len(weights)} tensors of ")
    images = fakes.rows(np.arange(4))["image"]
    one, other = open_runtime(first.artifact), open_runtime(second.artifact)
    np.testing.assert_array_equal(one.run({"image": images})["logits"], other.run({"image": images})["logits"])


def test_artifacts_that_a_recipe_names_are_parents(tmp_path: Path) -> None:
    teacher = str(tmp_path / "other/train/1")
    found = recipe(tmp_path, train=f"{{init: {{weights: {tmp_path}/x/train/2}}}}")
    needs = Train().needs(found, {})
    assert needs["train.init.weights"] == ("artifact", {"uri": f"{tmp_path}/x/train/2"})
    from_file = recipe(tmp_path, train="{init: {weights: w.pth}}")
    assert set(Train().needs(from_file, {})) == {"data.train"}
    text = TEXT.replace("name: airbench}", f"name: airbench}}, distill: {{teacher: '{teacher}'}}").replace("ROOT", "/r")
    assert Train().needs(load(text), {})["task.distill.teacher"] == ("artifact", {"uri": teacher})
    with pytest.raises(UserError, match="no finished artifact here"):
        open_given(teacher, Storage())
    _, overrides = portable(TEXT.replace("ROOT", "/r") + "train: {init: {weights: w.pth}}\n")
    assert overrides == [f"train.init.weights={Path.cwd() / 'w.pth'}"]


def test_early_stopping_reports_what_it_kept(tmp_path: Path) -> None:
    config = {**CONFIG, "epochs": 12, "early_stop": {"patience": 0}, "optimizer": {"lr": 0.2}}
    setup = trained(tmp_path, config)
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(history) < 12
    said: list[str] = []
    done = conclude(job(setup, said), setup, 1.0)
    assert (
        done.metrics["top1"]
        == max(r["val/top1"] for r in history)
        == kept(history, setup.config, "top1", "max")["val/top1"]
    )
    assert "a step takes" in done.metrics["bottleneck"]
    report = (tmp_path / "report.html").read_text()
    assert "The bottleneck is " in report
    best = kept(history, setup.config, "top1", "max")
    assert f"are those after epoch {best['epoch']:.0f}." in report
    assert "<b>0.1234</b>" in page("a", setup, history, {**best, "val/top1": 0.1234}).html()
    alone(setup, lambda record: pytest.fail("a finished run trained again"))


def records(**values: float) -> list[dict[str, float]]:
    base = {"seconds": 10.0, "step_seconds": 0.1, "data_wait": 0.0}
    return [{**base, "seconds": 99.0}, {**base, **values}, {**base, **values}]


def test_the_bottleneck_in_a_sentence() -> None:
    assert bottleneck(records()).startswith("the model: more workers")
    assert bottleneck(records()).endswith("; a step takes 100 ms, 0 % of it waiting for data")
    assert bottleneck(records(data_wait=0.6)).startswith("reading and decoding")
    assert "nearly as much" in bottleneck(records(data_wait=0.2))
    assert "evaluation (40 s against 20 s" in bottleneck(records(val_seconds=20.0))
    assert bottleneck([]) == "nothing was trained"


def test_a_weights_artifact_that_is_compressed_is_refused(tmp_path: Path) -> None:
    artifact = Artifact(str(tmp_path / "c"), Storage())
    artifact.write_json({"kind": "onnx", "file": "model.onnx"}, "variant.json")
    setup = fakes.setup(tmp_path / "t", fakes.source, {**CONFIG, "init": {"weights": artifact.uri}})
    setup.parents["train.init.weights"] = artifact
    with pytest.raises(UserError, match="a model of kind 'onnx'; give a train artifact"):
        alone(setup, print)


def test_a_position_in_other_data_is_refused(tmp_path: Path) -> None:
    def reading(version: str) -> Any:
        setup = fakes.setup(tmp_path, fakes.cut_off, CONFIG)
        return replace(setup, datasets={"train": SimpleNamespace(fingerprint=version)})

    with pytest.raises(ConnectionError):
        alone(reading("v1"), lambda record: None)
    with pytest.raises(UserError, match=r"checkpoints/\d+-\d+: its position is one in data.train of version v1, .*v2"):
        alone(reading("v2"), lambda record: pytest.fail("trained on"))
    alone(reading("v1"), lambda record: None)
    assert (tmp_path / "model.safetensors").exists()


def test_a_position_in_another_order_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = {"within": 3, "data": {}, "order": "of another version"}
    with pytest.raises(UserError, match=r"^c: its position lies within an epoch, whose rows .* in another order"):
        same_rows(resume, {}, "c")
    same_rows(resume | {"within": 0}, {}, "c")  # at an epoch's end no row is lost
    same_rows(resume | {"order": order.fingerprint()}, {}, "c")
    order.fingerprint.cache_clear()
    before = order.generator
    monkeypatch.setattr(order, "generator", lambda *key: before(key[0] + 1, *key[1:]))
    order.order.cache_clear()
    order._window.cache_clear()
    changed = order.fingerprint()
    monkeypatch.undo()
    for each in (order.fingerprint, order.order, order._window):
        each.cache_clear()
    assert order.fingerprint() != changed


def test_a_cpu_that_only_imitates_bf16_trains_in_fp32_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "fp32")
    for emulated, name in ((True, "imitated"), (False, "native")):
        monkeypatch.setattr("mapsto.engine.precision.emulated", lambda precision, device, is_so=emulated: is_so)
        said: list[str] = []
        alone(
            fakes.setup(tmp_path / name, fakes.source, {**CONFIG, "precision": "bf16"}),
            lambda record: None,
            said.append,
        )
        assert [text for text in said if "trained in fp32" in text] == said[:1] * emulated
    fp32, imitated, native = (load_file(tmp_path / n / "model.safetensors") for n in ("fp32", "imitated", "native"))
    assert all(np.array_equal(fp32[name], imitated[name]) for name in fp32)
    assert not all(np.array_equal(fp32[name], native[name]) for name in fp32)
