"""Ways to run the same training: half precision, compiled, with checkpointed activations, deterministic, cut short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mapsto.config.training import EarlyStopConfig, TrainConfig
from mapsto.core.errors import UserError
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.engine.fit import Midway, fit
from mapsto.engine.prepare import APART, checkpoint_gradients, compile_called, prepared, seen_already
from mapsto.engine.progress import forget_held, held
from mapsto.engine.stopping import EarlyStop
from mapsto.engine.world import World

from .runs import BATCH, ROWS, STEPS, run, same
from .toy import Adversaries, Regression, items, rows

CONFIG: dict[str, Any] = {"epochs": 3, "optimizer": {"lr": 0.05}}


@pytest.mark.parametrize("task", [Regression(), Adversaries()])
def test_fp16_with_a_scaled_loss_stays_near_fp32(task: Any) -> None:
    _, exact = run({**CONFIG, "clip": 1.0}, task)
    _, rounded = run({**CONFIG, "clip": 1.0, "precision": "fp16"}, task)
    for name in (n for n in exact[-1] if n.endswith("loss")):
        assert rounded[-1][name] == pytest.approx(exact[-1][name], rel=0.05), name
    assert rounded[-1]["loss_scale"] == 2.0**8


def test_fp16_skips_a_step_that_overflows_and_lowers_the_scale() -> None:
    class Steep(Regression):
        def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
            total, count, logs = super().loss(model, batch, context)
            return total * (1e10 if context.step == 1 else 1), count, logs

    model, history = run({"epochs": 1, "optimizer": {"lr": 0.05}, "precision": "fp16"}, Steep())
    assert history[0]["loss_scale"] == 2.0**7
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_is_the_layout_of_the_kernels(wanted: bool) -> None:
    net = prepared(nn.Sequential(nn.Conv2d(4, 8, 3)), TrainConfig(channels_last=wanted), World())
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last) == wanted
    assert net(torch.randn(2, 4, 8, 8)).is_contiguous(memory_format=torch.channels_last) == wanted


def test_fp16_whose_gradient_is_never_finite_ends_the_run() -> None:
    """Each step would be left out, and the run go to its end having learnt nothing."""

    class Endless(Regression):
        def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
            total, count, logs = super().loss(model, batch, context)
            weight = model[0].weight
            return total + torch.sqrt((weight - weight.detach()).abs()).sum(), count, logs  # 0, of infinite derivative

    with pytest.raises(UserError, match=r"the gradient of phase 'train' is not finite at step 2\d \(epoch 6\), .*rows"):
        run({"epochs": 9, "optimizer": {"lr": 0.05}, "precision": "fp16"}, Endless())


def test_compiled_it_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    whole = nn.Module.compile

    def traced(self: nn.Module, **options: Any) -> None:  # dynamo's own tracing, without minutes of code generation
        calls.append(self)
        whole(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    plain, _ = run(CONFIG)
    assert not calls
    compiled, _ = run({**CONFIG, "compile": True})
    assert calls == [compiled]
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(compiled.state_dict()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_of_a_model_whose_own_forward_no_loss_takes_the_parts_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    whole = nn.Module.compile

    def traced(self: nn.Module, **options: Any) -> None:
        compiled.append(self)
        whole(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    task = Adversaries()
    plain, _ = run(CONFIG, task)
    model, _ = run({**CONFIG, "compile": True}, task)
    assert len(compiled) == 2 and set(compiled) == {model["D"], model["G"]}
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.skipif(not APART, reason="this torch counts the variants of all parts together")
def test_each_compiled_part_has_variants_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    whole = nn.Module.compile

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: whole(self, backend=counted, **options))
    torch.compiler.reset()
    parts = nn.ModuleList(nn.Linear(3, 3) for _ in range(12))  # more than torch's limit of variants, 8
    compile_called(parts)
    for part in parts:
        part(torch.ones(2, 3))
    assert len(graphs) == len(parts)


class Tiled(nn.Module):
    """A small timm net on images of 64 pixels that are tiled with a row's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("test_resnet", num_classes=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.net(input.repeat(1, 3 * 64 * 64 // input.shape[1]).reshape(len(input), 3, 64, 64))


class Images(Regression):
    def build(self, parents: Any) -> nn.Module:
        torch.manual_seed(0)
        return Tiled()


def test_checkpointed_training_ends_with_the_plain_ones_statistics() -> None:
    config = {"epochs": 1, "optimizer": {"lr": 0.001}, "ema": 0.9, "accumulate": 2}
    plain, _ = run(config, Images())
    again, _ = run({**config, "gradient_checkpointing": True}, Images())
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(again.state_dict()[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpointed_norms_of_each_kind_see_a_batch_once(kind: type[nn.BatchNorm2d], momentum: float | None) -> None:
    norm, image = kind(3, momentum=momentum), torch.randn(2, 3, 4, 4, requires_grad=True)
    total = checkpoint(norm, image, use_reentrant=False).square().sum()
    mean = norm.running_mean.clone()
    with seen_already([norm]):
        total.backward()
    assert norm.num_batches_tracked == 1 and norm.momentum == momentum
    torch.testing.assert_close(norm.running_mean, mean)
    assert "num_batches_tracked" in norm.state_dict()


def test_checkpointed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    net, images = timm.create_model("test_vit", num_classes=3), torch.randn(2, 3, 160, 160)
    grads = []
    for _ in range(2):
        net.zero_grad()
        net.train()(images).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        checkpoint_gradients(nn.Sequential(net))
        assert net.grad_checkpointing
    for plain, checkpointed in zip(*grads, strict=True):
        np.testing.assert_allclose(plain, checkpointed, rtol=1e-4, atol=1e-5)


def test_a_model_without_checkpointing_is_refused() -> None:
    for net in (nn.Linear(2, 2), timm.create_model("vgg11", num_classes=2)):
        with pytest.raises(UserError, match=r"train.gradient_checkpointing: not possible for this model \("):
            checkpoint_gradients(net)


def test_sync_norm_is_torchs_and_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(sync_norm=True)
    with pytest.raises(UserError, match=r"train.sync_norm: torch's SyncBatchNorm needs GPUs"):
        prepared(nn.BatchNorm2d(2), config, World(0, 2))
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)
    net = prepared(nn.Sequential(nn.BatchNorm2d(2)), config, World(0, 2, torch.device("cuda")))
    assert isinstance(net[0], nn.SyncBatchNorm)
    net = prepared(nn.Sequential(nn.BatchNorm2d(2)), config, World(0, 1, torch.device("cuda")))
    assert isinstance(net[0], nn.BatchNorm2d)


def test_sync_norm_keeps_the_activation_that_a_norm_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)
    net = timm.create_model("test_efficientnet", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = net(images)
        after = prepared(net, TrainConfig(sync_norm=True), World(0, 2, torch.device("cuda")))(images)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in net.modules())
    torch.testing.assert_close(after, before)


def test_deterministic_twice_is_the_same_bits_and_leaves_torch_as_it_was() -> None:
    class Asking(Regression):
        def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
            assert torch.are_deterministic_algorithms_enabled()
            return super().loss(model, batch, context)

    config = {**CONFIG, "deterministic": True}
    task = Asking(dropout=0.3, norm=True)
    (first, history), (second, again) = run(config, task), run(config, task)
    same(first, second)
    assert [r["train/loss"] for r in history] == [r["train/loss"] for r in again]
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    class Loose(Regression):
        def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
            torch.ones(2).put_(torch.tensor([0]), torch.tensor([1.0]))  # refused without accumulate
            return super().loss(model, batch, context)

    with pytest.raises(UserError, match=r"train.deterministic: put_ does not have a deterministic"):
        run({**CONFIG, "deterministic": True}, Loose())


def test_out_of_memory_says_which_knob() -> None:
    class Greedy(Regression):
        def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    with pytest.raises(UserError, match=r"raise train.accumulate .*Tried to allocate 2 GiB\.\)$"):
        run(CONFIG, Greedy())

    class Huge(Regression):
        def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
            return torch.empty(2**60), 0, {}

    with pytest.raises(UserError, match=r"the device is out of memory; raise train.accumulate .*allocate memory"):
        run(CONFIG, Huge())


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"kind": "adamw", "lr": 0.01}, "schedule": {"kind": "cosine"}, "ema": 0.9},
        {"optimizer": {"kind": "lamb", "lr": 0.01}, "precision": "fp16", "schedule": {"kind": "exponential"}},
        {"optimizer": {"lr": 0.05}, "early_stop": {"patience": 1}, "clip": 0.5},
        {"optimizer": {"lr": 0.05}, "precision": "fp16", "accumulate": 2, "ema": 0.9, "clip": 0.5},
        {"optimizer": {"lr": 0.05}, "schedule": {"kind": "plateau", "patience": 0}, "precision": "bf16", "swa": {}},
        {
            "optimizer": {"kind": "adamw", "lr": 0.01, "layer_decay": 0.5, "groups": [{"match": "bias$", "lr": 2}]},
            "init": {"freeze": ["^0", "^1"], "unfreeze_at": [2, 1]},
            "ema": 0.9,
        },
    ],
)
def test_a_run_saved_in_mid_epoch_goes_on_to_the_same_bits(settings: dict[str, Any]) -> None:
    norm = "accumulate" not in settings  # a batch norm wants 2 rows
    config, task = {"epochs": 3, "deterministic": True, **settings}, Regression(dropout=0.3, norm=norm)
    whole, history = run(config, task)
    asked: list[int] = []
    saved: list[tuple[Midway, bytes]] = []
    unmoved, _ = run(
        config,
        task,
        notice=lambda: asked.append(1) or len(asked) == STEPS + 2,
        on_notice=lambda midway: saved.append((midway, to_bytes(midway.state()))),
    )
    same(whole, unmoved)  # saving is no part of training
    ((midway, data),) = saved
    state = from_bytes(data)
    assert (state["epoch"], state["within"], midway.epoch, midway.step) == (1, 2, 1, STEPS + 2)
    model, again = run(config, task, resume=state)
    same(whole, model)
    kept = ("epoch", "step", "lr", "train/loss", "train/square", "val/mse")
    assert [[r[n] for n in kept] for r in again] == [[r[n] for n in kept] for r in history]


def test_early_stopping_keeps_the_best_evaluations_weights() -> None:
    config = {"epochs": 30, "optimizer": {"lr": 0.05}, "early_stop": {"patience": 2, "min_delta": 0.01}, "ema": 0.5}
    epochs: list[Any] = []
    model, history = run(config, on_epoch=epochs.append)
    scores = [r["val/mse"] for r in history]
    best, at = np.inf, 0
    for number, score in enumerate(scores):
        if score < best - 0.01:
            best, at = score, number
    assert len(history) == at + 4 < 30
    assert [e.last for e in epochs] == [False] * (len(epochs) - 1) + [True]
    shorter, _ = run({**config, "epochs": at + 1})
    same(model, shorter)
    resumed, again = run(config, resume=from_bytes(to_bytes(epochs[-1].state())))
    same(model, resumed)
    assert len(again) == len(history)


def test_nothing_to_stop_by_is_refused() -> None:
    task, settings = Regression(), TrainConfig(epochs=3, early_stop={"patience": 1})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"train.early_stop: the data has no rows in `val`"):
        fit(task, task.build({}), settings, items(rows(ROWS), None, batch=BATCH, epochs=3), World(), STEPS)


def test_patience_by_hand() -> None:
    stop = EarlyStop(EarlyStopConfig(patience=1, min_delta=0.1), "max")
    ended = []
    for score in (float("nan"), 0.5, 0.55, 0.7, float("nan"), 0.75):
        stop.update(score, {"w": torch.tensor(score)})
        ended.append(stop.stopped)
    assert ended == [False, False, False, False, False, True]
    assert float(stop.weights["w"]) == pytest.approx(0.7)
    assert EarlyStop(EarlyStopConfig(patience=0), "min").stopped is False


def test_the_memory_of_a_run_is_not_that_of_one_before_it_in_this_process() -> None:
    much = np.ones(400_000_000 // 8)
    before = held()
    del much
    forget_held()
    if held() == before:
        pytest.skip("this system does not let the peak be reset")
    assert before - held() > 300e6
    _, history = run({"epochs": 1})
    assert history[0]["memory_mb"] * 1e6 < before - 200e6
