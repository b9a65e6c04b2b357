"""The generators' requests, losses and refusals, without Ray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.task import Context, direct

INFO = DatasetInfo("s3://b/data", "f:1", ("cat", "dog"), {"train": 9}, ("image", "label"))
CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)
CONFIGS = {
    "gan": {"image_size": 16, "latent": 8, "width": 4},
    "vae": {"image_size": 16, "latent": 8, "width": 8},
    "diffusion": {"image_size": 16, "widths": [8, 16], "blocks": 1, "steps": 2},
}


def make(kind, info=INFO, **changes):
    cls = task_class(kind)
    return cls(cls.Config(**{"kind": kind, **CONFIGS[kind], **changes}), {"train": info})


def picture(seed, size=20):
    return encode(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8), "png")


def batch(task, rows=8, split="train"):
    stream = task.streams(split)[""]
    samples = [{"image": picture(i % 2), "label": i % 2} for i in range(rows)]
    made = [
        stream.transform([{c: s[c] for c in stream.columns}], np.random.default_rng(i)) for i, s in enumerate(samples)
    ]
    whole = task.collate(made) | {"row_id": np.arange(rows), "valid": np.ones(rows, bool)}
    return {name: torch.from_numpy(value) for name, value in whole.items()}


def answers(task, *requests):
    torch.manual_seed(0)
    prepared = [task.prepare(request) for request in requests]
    inputs = task.inputs(task.collate([sample for sample, _ in prepared]))
    with torch.no_grad():
        output = direct(task).forward(task.build({}).eval(), {k: torch.from_numpy(v) for k, v in inputs.items()})
    found = task.decode({k: v.numpy() for k, v in output.items()}, [geometry for _, geometry in prepared])
    return [(answer["image"], task.render(sample, answer)) for (sample, _), answer in zip(prepared, found, strict=True)]


@pytest.mark.parametrize("changes", [{}, {"conditional": True, "inpaint": 0.0}, {"conditional": True}])
def test_diffusion_learns_two_images(changes):
    torch.manual_seed(0)
    task = make("diffusion", flip=0.0, **changes)
    task.check()
    model = task.build({})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tensors = batch(task, 16)
    assert set(tensors) - {"row_id", "valid"} == {
        "image", "z", "t", *(("label",) if task.classes else ()), *(("mask",) if task.config.inpaint else ()),
    }  # fmt: skip
    losses = []
    for _ in range(25):
        total, count, _ = task.phases(model)[0].loss(model, tensors, CONTEXT)
        optimizer.zero_grad()
        (total / count).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(float(total.detach() / count))
    assert losses[-1] < 0.8 * losses[0]
    assert model.eval()(**task.inputs(batch(task, 3, "val"))).shape == (3, 16, 16, 3)


def test_a_vae_learns_two_images():
    torch.manual_seed(0)
    task = make("vae", flip=0.0)
    model = task.build({})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tensors, losses = batch(task), []
    for _ in range(40):
        total, count, logs = task.phases(model)[0].loss(model, tensors, CONTEXT)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append(float(logs["train_mse"] / count))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_gan_losses_and_the_penalty_by_hand(loss):
    task = make("gan", loss=loss, r1=3.0, r2=0.5, conditional=True, spectral_norm=False)
    model = task.build({}).eval()
    tensors = batch(task, 4)
    with torch.no_grad():
        fake = model.generator(tensors["z"], tensors["label"])
    real = tensors["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
    on_real, on_fake, slopes = [], [], []
    for i in range(4):
        for images, scores in ((real, on_real), (fake, on_fake)):
            one = images[i : i + 1].clone().requires_grad_()
            score = model.discriminator(one, tensors["label"][i : i + 1])
            slopes.append(torch.autograd.grad(score.sum(), one)[0].square().sum())
            scores.append(score.detach()[0])
    on_real, on_fake, slopes = torch.stack(on_real), torch.stack(on_fake), torch.stack(slopes).view(4, 2)
    if loss == "hinge":
        plain = (1 - on_real).clamp(min=0) + (1 + on_fake).clamp(min=0)
    else:
        plain = (1 + (on_fake - on_real).exp()).log()
    wanted = (plain + (3.0 * slopes[:, 0] + 0.5 * slopes[:, 1]) / 2).sum()
    total, count, _ = task.phases(model)[0].loss(model, tensors, CONTEXT)
    torch.testing.assert_close(total.detach(), wanted, rtol=1e-4, atol=1e-4)
    assert float(count) == 4
    total.backward()
    assert all(p.grad is not None for p in model.discriminator.parameters())
    total, _, _ = task.phases(model)[1].loss(model, tensors, CONTEXT)
    total.backward()
    assert all(p.grad is not None for p in model.generator.parameters())


def test_a_class_is_a_name_or_a_number_or_the_seeds():
    task = make("gan", conditional=True)
    assert (
        task.prepare({"seed": 1, "class": "dog"})[0]["label"]
        == task.prepare({"seed": 9, "class": "1"})[0]["label"]
        == 1
    )
    assert {task.prepare({"seed": seed})[0]["label"] for seed in range(20)} == {0, 1}
    with pytest.raises(UserError, match=r"`class` 'dgo' is none of the 2 classes, did you mean 'dog'"):
        task.prepare({"seed": 1, "class": "dgo"})
    assert [field.name for field in task.signature().inputs] == ["seed", "class"]
    assert [field.name for field in make("gan").signature().inputs] == ["seed"]


@pytest.mark.parametrize("seed", ["--5", "²", "", "-", "1.5", "x" * 999, "9" * 5000, 1.5, True, None])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(UserError, match="`seed` must be an integer") as told:
        make("gan").prepare({"seed": seed})
    assert len(str(told.value)) < 120


@pytest.mark.parametrize("given", ["²", "2", "-1", 2, True, "9" * 5000])
def test_a_class_that_is_none_is_refused(given):
    with pytest.raises(UserError, match="is none of the 2 classes"):
        make("gan", conditional=True).prepare({"seed": "-3", "class": given})


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_split_too_small_for_the_neighbours_is_refused_before_training(kind):
    for split in ("val", "test"):
        info = replace(INFO, rows={"train": 9, split: 3})
        with pytest.raises(UserError, match=rf"s3://b/data: its 3 rows in '{split}' .* need 4 or more"):
            make(kind, info).check()
        make(kind, info, neighbours=2).check()
        make(kind, replace(INFO, rows={"train": 9, split: 4})).check()


def test_an_extractor_that_cannot_be_had_is_refused_before_training(tmp_path):
    for extractor, said in (
        ({"name": "inception", "weights": str(tmp_path / "none.pth")}, "none.pth"),
        ({"name": "resnet999"}, "task.extractor.name"),
        ({"name": "mine", "artifact": str(tmp_path / "none")}, r"task\.extractor\.artifact: .*no finished"),
    ):
        with pytest.raises(UserError, match=said):
            make("gan", extractor=extractor).check()


def test_a_vae_copies_draws_and_goes_between():
    task = make("vae")
    a, b = picture(3), picture(4)
    (copy, shown), (again, _), (middle, alone), (other, _), (drawn, _) = answers(
        task, {"image": a}, {"image": a, "to": b, "t": 0}, {"image": a, "to": b}, {"image": b}, {"seed": 3}
    )
    assert np.array_equal(copy, again) and shown.shape == (16, 32, 3) and alone.shape == (16, 16, 3)
    assert not np.array_equal(middle, copy) and not np.array_equal(middle, other) and not np.array_equal(drawn, copy)
    for wrong, said in (
        ({}, "neither an `image`.* nor a `seed`"),
        ({"image": a, "to": b, "t": 1.5}, "`t` must be from 0"),
    ):
        with pytest.raises(UserError, match=said):
            task.prepare(wrong)


def test_a_hole_is_painted_and_the_rest_stays():
    task, image = make("diffusion"), np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    hole = np.zeros((16, 16), np.uint8)
    hole[4:9, 2:12] = 255
    (filled, shown), (new, alone) = answers(
        task, {"seed": 1, "image": encode(image, "png"), "mask": encode(hole, "png")}, {"seed": 1}
    )
    assert np.array_equal(filled[hole == 0], image[hole == 0]) and not np.array_equal(filled, image)
    assert shown.shape == (16, 32, 3) and alone.shape == (16, 16, 3) and not np.array_equal(new, filled)
    assert (shown[4:9, 2:12] == 128).all()
    with pytest.raises(UserError, match="both an `image` and a `mask`"):
        task.prepare({"seed": 1, "image": encode(image, "png")})
    with pytest.raises(UserError, match="`mask` is 16x16 pixels, `image` 20x20"):
        task.prepare({"seed": 1, "image": picture(0), "mask": encode(hole, "png")})
    assert "mask" not in make("diffusion", inpaint=0.0).prepare({"seed": 1})[0]


def test_holes_are_boxes_of_a_share_of_the_draws():
    stream = make("diffusion", inpaint=0.5).streams("train")[""]
    masks = [stream.transform([{"image": picture(0)}], np.random.default_rng(k))["mask"] for k in range(80)]
    part = [mask for mask in masks if (mask == 0).any()]
    assert 20 < len(part) < 60 and all((mask == 255).any() and set(np.unique(mask)) == {0, 255} for mask in part)
    whole = make("diffusion").streams("val")[""].transform([{"image": picture(0)}], np.random.default_rng(0))
    assert (whole["mask"] == 255).all() and "t" not in whole


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_what_the_report_shows_can_be_asked(kind):
    task = make(kind, **({"conditional": True} if kind != "vae" else {}))
    shown = task.showcase([picture(0), picture(1)])
    assert len(shown) == {"gan": 1, "vae": 3, "diffusion": 2}[kind]
    for requests in shown.values():
        sizes = {render.shape for _, render in answers(task, *requests[:4])}
        assert len(requests) >= 2 and len(sizes) == 1


def test_the_whole_sampler_is_exported():
    import onnxruntime

    from mapsto.compress.export import random_inputs, to_onnx

    torch.manual_seed(0)
    task = make("diffusion", conditional=True)
    model, spec = task.build({}).eval(), task.export()
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    exported = to_onnx(direct(task).forward, model, spec)
    inputs = random_inputs(spec, 3)
    theirs = onnxruntime.InferenceSession(exported).run(list(spec.outputs), inputs)
    with torch.inference_mode():
        ours = direct(task).forward(model, {k: torch.from_numpy(v) for k, v in inputs.items()})
    for name, value in zip(spec.outputs, theirs, strict=True):
        assert np.abs(value.astype(int) - ours[name].numpy()).max() <= 1
    assert exported.count(next(model.net.middle[0].conv1.parameters()).detach().numpy().tobytes()) == 1  # not per step


def test_settings_that_do_not_fit_are_named():
    for changes, said in (
        ({"image_size": 24}, "24 is not a power of two"),
        ({"extractor": {"name": "inception"}}, "weights: the URI of Inception's state dict"),
        ({"extractor": {"name": "resnet18", "weights": "x.pth"}}, "weights: the URI of Inception's state dict"),
        ({"extractor": {"artifact": "s3://b/x"}}, "artifact: say in `name` what to call its features"),
    ):
        with pytest.raises(ValidationError, match=said):
            make("gan", **changes)
    with pytest.raises(UserError, match=r"no labels, which task\.conditional needs"):
        make("gan", replace(INFO, classes=()), conditional=True).check()
    with pytest.raises(
        ValidationError, match=r"untold 0: .* guidance 1.5 starts from; set untold above 0, such as 0.1, or guidance 1"
    ):
        make("diffusion", conditional=True, untold=0)
    make("diffusion", conditional=True, untold=0, guidance=1)
    make("diffusion", untold=0)
    with pytest.raises(UserError, match="5 levels need images of at least 32 pixels"):
        make("diffusion", widths=[4] * 5).check()
    assert make("gan", extractor={"name": "mine", "artifact": "s3://b/x"}).config.artifacts() == {
        "extractor.artifact": "s3://b/x"
    }
