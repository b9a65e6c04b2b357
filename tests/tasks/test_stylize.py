"""Style transfer's own pieces, without Ray: methods, streams, requests as tiles, export, a run of the engine."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapsto.config.training import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.item import Item
from mapsto.core.picture import recolour
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.core.task import Context, Unsupported, direct
from mapsto.engine.fit import fit
from mapsto.engine.world import World
from mapsto.models.backbones import classifier
from mapsto.models.normalize import Normalized
from mapsto.serving import protocol
from mapsto.serving.runtimes import answers

CNN = {"model": {"name": "cnn", "widths": [4, 8]}, "content": ["layers.4"], "style": ["layers.1", "layers.4"]}
SMALL = {"image_size": 32, "style_size": 24, "overlap": 8, "features": CNN}
METHODS = ("adain", "feedforward", "optimise")


def make(method: str = "adain", styles: int = 1, **changes):
    cls = task_class("stylize")
    info = {
        role: DatasetInfo(f"s3://b/{role}", "f", (), {"train": count}, ("image",))
        for role, count in (("train", 9), ("style", styles))
    }
    own = {"width": 4} if method == "feedforward" else {"steps": 3} if method == "optimise" else {}
    return cls(cls.Config(kind="stylize", method=method, **{**SMALL, **own, **changes}), info)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (9 + k) + seed) * np.cos(y / (7 + 2 * k)) for k in range(3)]
    return np.stack([120 + 90 * wave for wave in waves], 2).astype(np.uint8)


def batch(task, split="train", size=4):
    out = {}
    for name, stream in task.streams(split).items():
        rows = max(1, round(stream.ratio * size))
        samples = [
            stream.transform([{"image": encode(picture(40, 50, 10 * (name == "style") + i))}], np.random.default_rng(i))
            for i in range(rows)
        ]
        out |= {f"{name}.{k}": v for k, v in task.collate(samples).items()}
    return out | {"row_id": np.arange(size), "valid": np.ones(size, bool)}


class Runtime:
    """The torch module as the runtimes run it."""

    def __init__(self, task, model) -> None:
        self.task, self.model, self.calls = task, model.eval(), []

    def run(self, inputs):
        self.calls.append(len(inputs["image"]))
        with torch.inference_mode():
            tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
            return {k: v.numpy() for k, v in direct(self.task).forward(self.model, tensors).items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_the_engine_and_its_metrics(method):
    task = make(method)
    task.check()
    torch.manual_seed(0)
    model = task.build({})
    whole = batch(task)
    steps = 1 if method == "optimise" else 6
    items = [(Item("train", 0, k, 0, True, False), whole) for k in range(steps)]
    items.append((Item("val", 0, steps, 0, False, True), batch(task, "val")))
    config = TrainConfig(batch_size=4, epochs=1, optimizer={"kind": "adam", "lr": 0.01, "weight_decay": 0})
    (record,) = fit(task, model, config, items, World(), steps)
    metrics = {k.removeprefix("val/"): v for k, v in record.items() if k.startswith("val/")}
    assert metrics["loss"] == pytest.approx(metrics["content_loss"] + 10 * metrics["style_loss"])
    assert metrics["s_per_megapixel"] > 0
    if method == "optimise":
        assert record["lr"] == 0 and "train/loss" not in record
    else:
        assert np.isfinite(record["train/loss"]) and record["train/style_loss"] > 0
    if method != "feedforward":  # what an answer needs of the style is in the model
        assert np.array_equal(model.style[0].numpy(), whole["style.image"][0])
    twin = task.build({})
    twin.load_state_dict(model.state_dict())
    state = task.metrics().state(Runtime(task, twin).run(task.inputs(whole_val := batch(task, "val"))), whole_val)
    assert task.metrics().compute(state)["loss"] == pytest.approx(metrics["loss"], rel=1e-3)
    assert len(task.metrics().tables(state)["pictures"]) == 4
    assert pickle.loads(pickle.dumps(task))._net is None  # no network goes to the data's tasks


def test_training_brings_the_style_nearer():
    task = make("feedforward", smoothness=0.0)
    torch.manual_seed(0)
    model, whole = task.build({}), batch(task)
    items = [(Item("train", 0, k, 0, True, k == 39), whole) for k in range(40)]
    config = TrainConfig(batch_size=4, epochs=1, optimizer={"kind": "adam", "lr": 0.003, "weight_decay": 0})

    def style_loss():
        tensors = {k: torch.from_numpy(v) for k, v in whole.items()}
        with torch.no_grad():
            _, count, logs = task.phases(model)[0].loss(model, tensors, CONTEXT)
        return float(logs["style_loss"] / count)

    before = style_loss()
    fit(task, model, config, items, World(), 40)
    assert style_loss() < 0.7 * before


CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)


def test_streams_read_held_out_styles_where_there_are_some():
    few, many = make(), make()
    many.datasets = {**many.datasets, "style": DatasetInfo("u", "f", (), {"train": 6, "val": 2}, ("image",))}
    assert few.streams("val")["style"].split == "train" and many.streams("val")["style"].split == "val"
    assert make("feedforward").streams("train")["style"].ratio == 0 and few.streams("train")["style"].ratio == 1


@pytest.mark.parametrize("method", METHODS)
def test_pictures_of_any_size_come_back_in_their_own(method):
    task = make(method, longest_side=100)
    model = task.build({})
    if method == "feedforward":
        torch.nn.init.zeros_(model.net.last.weight)
    runtime = Runtime(task, model)
    sizes = [(20, 30), (32, 32), (90, 70), (31, 80), (10, 8), (50, 200)]
    images = [picture(*size) for size in sizes]
    found = answers(runtime, [task.prepare({"image": encode(i, "png"), "alpha": 0}) for i in images])
    shrunk = 32 if method == "optimise" else 100
    scales = [min(1, shrunk / max(size)) for size in sizes]
    assert [a["image"].shape[:2] for a in found] == [
        tuple(round(side * scale) for side in size) for size, scale in zip(sizes, scales, strict=True)
    ]
    assert max(runtime.calls) <= 9
    if method == "feedforward":  # strength 0: the pictures themselves, put together again
        for size, one, answer in zip(scales, images, found, strict=True):
            assert size < 1 or np.array_equal(one, answer["image"])


@pytest.mark.parametrize("method", ["adain", "feedforward"])
def test_tiles_have_no_seams(method):
    torch.manual_seed(1)
    tiled, whole = make(method, image_size=64, overlap=32, longest_side=256), make(method, image_size=128, overlap=8)
    model = tiled.build({}).eval()
    if method == "feedforward":
        torch.nn.init.normal_(model.net.last.weight, std=0.02)
    request = {"image": picture(128, 128), "style": encode(picture(30, 30, 4))}
    parts = answers(Runtime(tiled, model), [tiled.prepare(request)])[0]["image"].astype(float)
    at_once = answers(Runtime(whole, model), [whole.prepare(request)])[0]["image"].astype(float)
    assert len(list(tiled.parts(tiled.collate([tiled.prepare(request)[0]])))) == 2

    def jump(image):
        """At tile borders against everywhere else."""
        step = np.abs(np.diff(image, axis=1)).mean((0, 2))
        return step[[31, 32, 63, 64, 95]].max() / (step.mean() + 0.5)

    assert jump(parts) < jump(at_once) + 0.5
    own = tiled.prepare(request)[0] | {"shared": np.zeros(10, np.float32)}  # every tile by its own statistics
    batch = tiled.collate([own])
    loose = Runtime(tiled, model)
    rows = np.concatenate([loose.run(part)["result"] for part in tiled.parts(batch)])
    apart = tiled.decode({"result": rows}, [tiled.prepare(request)[1]])[0]["image"].astype(float)
    assert np.abs(parts - at_once).mean() < np.abs(apart - at_once).mean()


def test_requests_that_do_not_fit_are_refused_in_one_line():
    task, one = make(styles=3, features=CNN), encode(picture(20, 20))
    two = make("adain", 3)
    two.config = two.config.model_copy(update={"styles": 2})
    for request, line in (
        ({}, "no image"),
        ({"image": one, "alpha": "much"}, r"`alpha` must be a number from 0 to 1, not 'much'"),
        ({"image": one, "alpha": 1.5}, "from 0 to 1"),
        ({"image": one, "weight": 1}, "`weight` is given, and no `style`"),
        ({"image": one, "style": one, "weight": 0}, "every weight is 0"),
        ({"image": one, "style": b"x"}, "image"),
    ):
        with pytest.raises(UserError, match=line):
            task.prepare(request)
    assert [f.name for f in two.signature().inputs] == ["image", "alpha", "style", "weight", "style_2", "weight_2"]
    mix = two.prepare({"image": one, "style": one, "style_2": one, "weight_2": "3"})[0]["mix"]
    assert mix.tolist() == [[1.0, 3.0]]
    assert make("feedforward").signature().inputs[-1].name == "alpha"


def test_the_endpoint_takes_one_bare_image_or_two_parts():
    signature = make().signature()
    assert protocol.parse("image/png", b"photo", signature) == [{"image": b"photo"}]
    body = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nphoto\r\n'
        b'--x\r\nContent-Disposition: form-data; name="style"; filename="b"\r\n\r\npainting\r\n'
        b'--x\r\nContent-Disposition: form-data; name="alpha"\r\n\r\n0.5\r\n--x--\r\n'
    )
    found = protocol.parse("multipart/form-data; boundary=x", body, signature)
    assert found == [{"image": b"photo", "style": b"painting", "alpha": 0.5}]


@pytest.mark.parametrize("method", METHODS)
def test_export(method):
    from onnx import load_from_string

    from mapsto.compress.export import difference, random_inputs, to_onnx
    from mapsto.serving.runtimes import open_variant

    task = make(method)
    spec = task.export()
    if method == "optimise":
        assert isinstance(spec, Unsupported) and "no fixed graph" in spec.reason
        return
    model = task.build({}).eval()
    if method == "feedforward":
        torch.nn.init.normal_(model.net.last.weight, std=0.02)
    onnx = to_onnx(direct(task).forward, model, spec)
    exported = open_variant(task, {"kind": "onnx", "file": "m", "precision": "fp32"}, onnx)
    inputs = random_inputs(spec, 5)
    inputs["shared"] = np.array([0, 1, 0, 1, 0], np.float32)
    assert difference(Runtime(task, model).run(inputs), exported.run(inputs)) <= 1
    names = [one.name for one in load_from_string(onnx).graph.initializer]
    kept = any("features" in name for name in names)
    assert kept == (method == "adain")  # a feed-forward answer needs none of them
    request = task.prepare({"image": picture(50, 40), "style": encode(picture(30, 30))})
    ours, theirs = (answers(one, [request])[0]["image"].astype(int) for one in (Runtime(task, model), exported))
    assert np.abs(ours - theirs).max() <= 1
    with pytest.raises(UserError, match="evaluate the train artifact"):
        make(method).metrics().state({"result": spec.inputs["image"]}, {"content.image": None, "style.image": None})


def test_features_come_from_a_classifier_that_was_trained(tmp_path):
    storage = Storage()
    net = Normalized(classifier("cnn", 7, image_size=32, settings={"widths": (4, 8)}), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    trained = Artifact(str(tmp_path), storage)
    trained.write_json({"kind": "torch", "file": "model.safetensors", "precision": "fp32"}, "variant.json")
    task = make(features={**CNN, "weights": str(tmp_path)})
    assert task.config.artifacts() == {"features.weights": str(tmp_path)}
    parents = {"data.train": trained, "task.features.weights": trained}
    made = task.build(parents).features.state_dict()
    assert torch.equal(made["net.net.layers.0.weight"], weights["net.layers.0.weight"])
    assert torch.equal(made["net.shift"], weights["shift"])
    as_file = make(features={**CNN, "weights": str(tmp_path / "model.safetensors")})
    assert as_file.config.artifacts() == {}
    again = as_file.build({"data.train": trained}).features.state_dict()
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert not torch.equal(
        as_file.build({}).features.state_dict()["net.shift"], made["net.shift"]
    )  # later from the model
    wrong = {**CNN, "weights": str(tmp_path), "model": {"name": "cnn", "widths": [4, 9]}}
    with pytest.raises(UserError, match=r"does not fill task.features.model 'cnn'.*\(9, 4, 3, 3\), not \(8, 4, 3, 3\)"):
        make(features=wrong).build(parents)


def test_settings_that_do_not_fit():
    for changes, line in (
        ({"image_size": 36}, "no multiple of 8"),
        ({"overlap": 20}, "more than half"),
        ({"method": "feedforward", "styles": 2}, "are of adain"),
        ({"method": "optimise", "colour": "lab"}, "are of adain"),
        ({"features": {"model": {"name": "vgg19", "pretrained": True}, "weights": "s3://b/x"}}, "two sources"),
    ):
        with pytest.raises(ValueError, match=line):
            task_class("stylize").Config(kind="stylize", **{**SMALL, **changes})
    with pytest.raises(UserError, match="3 pictures; feedforward learns the style of one"):
        make("feedforward", 3).check()
    task = make()
    task.datasets = {"train": task.datasets["train"]}
    with pytest.raises(UserError, match=r"no data\.style; it has train"):
        task.check()


def test_recoloured_pictures_have_the_others_colours():
    import cv2

    ours, theirs = picture(40, 60, 1) // 4 + 90, picture(30, 20, 2) // 4 + np.array([120, 60, 20], np.uint8)
    found = recolour(ours, theirs)
    lab = [cv2.cvtColor(i.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for i in (found, theirs)]
    assert np.abs(lab[0].mean((0, 1)) - lab[1].mean((0, 1))).max() < 1
    assert np.abs(lab[0].std((0, 1)) - lab[1].std((0, 1))).max() < 1


def test_likeness_is_measured_where_its_weights_are_named(monkeypatch):
    from mapsto.tasks import likeness

    monkeypatch.setattr(likeness, "_opened", lambda _: lambda a, b: (a.float() - b.float()).abs().mean()[None])
    task = make(lpips={"backbone": "s3://b/alexnet.pth", "linear": "s3://b/alex.pth"})
    model, whole = task.build({}), batch(task, "val")
    state = task.metrics().state(Runtime(task, model).run(task.inputs(whole)), whole)
    values = task.metrics().compute(state)
    assert state["lpips"].shape == (4,) and values["lpips"] == pytest.approx(float(state["lpips"].mean()))
    assert "lpips" not in make().metrics().compute({k: v for k, v in state.items() if k != "lpips"})


def test_a_missing_file_of_its_weights_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").write_bytes(b"x")
    task = make(lpips={"backbone": "net.pth", "linear": "lin.pth"})
    assert task.config.lpips.backbone == str(tmp_path / "net.pth")
    with pytest.raises(UserError, match=rf"task.lpips.linear: {tmp_path}/lin.pth is not there"):
        task.check()
    (tmp_path / "lin.pth").write_bytes(b"x")
    task.check()
