"""Metric learning on a tiny drawn set of identities, without Ray."""

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
from mapsto.core.task import Context

PEOPLE = tuple("abcdef")
INFO = DatasetInfo(
    "s3://b/faces", "f:1", PEOPLE, {"train": 24}, ("image", "label", "identity"),
    counts={"train": dict.fromkeys("bcdf", 6), "test": dict.fromkeys("ae", 6)},
)  # fmt: skip
CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)


def make(info=INFO, **changes):
    cls = task_class("embed")
    config = {"kind": "embed", "image_size": 32, "model": {"name": "resnet10t", "dimensions": 8}}
    return cls(cls.Config(**{**config, **changes}), {"train": info})


def face(person, number):
    """A person is a colour and a place; each picture has its own light."""
    rng = np.random.default_rng(number)
    image = np.full((36, 36, 3), 40 + 20 * rng.random(), np.float64)
    colour = np.random.default_rng(1000 + person).uniform(60, 255, 3)
    x = 4 + 5 * person
    image[8:28, x : x + 8] = colour
    return encode((image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8), "png")


def batch(task, people, split="train"):
    stream = task.streams(split)[""]
    samples = []
    for k, person in enumerate(people):
        sample = {"image": face(person, k), "label": person, "identity": PEOPLE[person]}
        sample["source"] = f"{PEOPLE[person]}/{PEOPLE[person]}_{k:04d}.png"
        samples.append(stream.transform([{c: sample[c] for c in stream.columns}], np.random.default_rng(k)))
    whole = task.collate(samples) | {"row_id": np.arange(len(people)), "valid": np.ones(len(people), bool)}
    return {name: torch.from_numpy(value) for name, value in whole.items()}


TRIPLET = {"column": "identity", "loss": {"name": "triplet"}}


@pytest.mark.parametrize("changes", [{}, {"loss": {"name": "cosface"}}, TRIPLET], ids=["arcface", "cosface", "triplet"])
def test_a_few_steps_tell_the_people_apart(changes):
    torch.manual_seed(0)
    task = make(model={"name": "resnet10t", "dimensions": 8, "small_input": False}, **changes)
    task.check()
    model = task.build({})
    tensors = batch(task, [1, 2, 3, 5] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    losses = []
    for _ in range(12):
        total, count, _ = task.phases(model)[0].loss(model, tensors, CONTEXT)
        optimizer.zero_grad()
        (total / count).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(float((total / count).detach()))
    assert losses[-1] < 0.7 * losses[0]
    seen = batch(task, [1, 2, 3, 5] * 3, "test")
    model.train()  # few steps: the running statistics lag
    with torch.no_grad():
        output = {name: value.numpy() for name, value in task.forward(model, seen).items()}
    np.testing.assert_allclose(np.linalg.norm(output["embedding"], axis=1), 1, atol=1e-5)
    metrics = task.metrics()
    values = metrics.compute(metrics.state(output, {name: value.numpy() for name, value in seen.items()}))
    assert values["auc"] > 0.9


def test_only_those_in_training_have_a_direction():
    task = make()
    model = task.build({})
    assert model.centres.shape == (4, 8)
    assert task.known == {1: 0, 2: 1, 3: 2, 5: 3}
    assert make(**TRIPLET).build({}).centres is None
    cosine = model(batch(task, [5, 1])["image"]) @ torch.nn.functional.normalize(model.centres, dim=1).T
    total, count, _ = task.phases(model.eval())[0].loss(model, batch(task, [5, 1]), CONTEXT)
    assert float(count) == 2 and total.isfinite() and cosine.shape == (2, 4)


@pytest.mark.parametrize("loss", ["arcface", "triplet"])
def test_padding_never_counts_nor_is_mined(loss):
    task = make(loss={"name": loss})
    model = task.build({}).eval()
    full = batch(task, [1, 2, 1, 2, 1, 3])
    full["valid"] = torch.tensor([True] * 4 + [False] * 2)
    phase = task.phases(model)[0]
    with torch.no_grad():
        padded, alone = (
            phase.loss(model, part, CONTEXT) for part in (full, {name: value[:4] for name, value in full.items()})
        )
    assert float(padded[1]) == float(alone[1]) == 4
    assert float(padded[0]) == pytest.approx(float(alone[0]), rel=1e-5)


def test_triplets_reach_over_the_workers_rows():
    task = make(loss={"name": "triplet"})
    model = task.build({}).eval()
    whole = batch(task, [1, 2, 3, 1, 2, 3])
    parts = [{name: value[k : k + 3] for name, value in whole.items()} for k in (0, 3)]
    with torch.no_grad():
        everyone = task.forward(model, whole)["embedding"]
        expected, count, _ = task.phases(model)[0].loss(model, whole, CONTEXT)
        totals = []
        for rank, part in enumerate(parts):
            found = iter([everyone, whole["label"], whole["valid"].long(), torch.tensor([3, 3])])
            context = Context(0, 0, 10, torch.Generator(), rank, 2, lambda _, found=found: next(found))
            totals.append(task.phases(model)[0].loss(model, part, context))
    assert sum(float(t) for t, _, _ in totals) == pytest.approx(float(expected), rel=1e-5)
    assert sum(float(n) for _, n, _ in totals) == float(count) == 6


def test_the_answer_is_a_list_and_pairs_come_by_the_files_names(tmp_path):
    listed = tmp_path / "pairs.txt"
    listed.write_text("2\na 0 2\ne 1 3\na 0 e 1\na 2 e 3\n")
    task = make(pairs=str(listed))
    task.check()
    rows = batch(task, [0, 4, 0, 4], "test")
    output = {"embedding": np.eye(4, 8, dtype=np.float32)[[0, 1, 0, 1]]}
    (first, *_) = task.decode(output, [])
    assert first == {"embedding": [1.0] + [0.0] * 7}
    metrics = task.metrics()
    values = metrics.compute(metrics.state(output, {name: value.numpy() for name, value in rows.items()}))
    assert (values["fold_accuracy"], values["pairs_missing"], values["recall@1"]) == (1.0, 0.0, 1.0)
    with pytest.raises(UserError, match="nowhere"):
        make(pairs=str(tmp_path / "nowhere.txt")).check()


def test_data_and_settings_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="0 labels in training"):
        make(DatasetInfo("u", "f", (), {}, ("image",))).check()
    with pytest.raises(UserError, match="no identities"):
        make(DatasetInfo("u", "f", ("a", "b"), {}, ("image", "label")), **TRIPLET).check()
    for changes, said in (
        ({"column": "identity"}, "arcface learns a direction per label"),
        ({"loss": {"name": "triplet", "scale": 3}}, "scale is no setting of triplet"),
        ({"loss": {"soft_margin": True}}, "soft_margin is triplet's"),
        ({"loss": {"name": "triplet", "soft_margin": True, "margin": 0.1}}, "soft_margin is triplet's"),
        ({"loss": {"name": "softmax"}}, "Input should be"),
    ):
        with pytest.raises(ValidationError, match=said):
            make(**changes)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 5}, "all labelled rows are of 'a'"),
        ({"a": 1, "e": 1}, "no label has two pictures"),
        ({}, "no row has a label"),
    ],
)
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_that_cannot_be_measured_is_refused_before_training(split, counts, said):
    whole = {"train": dict.fromkeys("bcdf", 6), split: counts}
    info = replace(INFO, rows={"train": 24, split: 5}, counts=whole)
    with pytest.raises(
        UserError, match=rf"s3://b/faces: its 5 rows in '{split}' cannot be measured: {said}; .*data\.train\.group"
    ):
        make(info).check()
    make(info, **TRIPLET).check()  # of identities nothing is known before
    make(replace(info, rows={"train": 24, split: 0})).check()
    make(replace(info, counts={"train": whole["train"], split: {"a": 3, "b": 2}})).check()


def test_triplets_say_what_they_need_and_how_rows_come_together():
    (phase,) = make(loss={"name": "triplet"}).phases(None)  # type: ignore
    assert (
        phase.uncounted.startswith("no batch held two pictures of one label")
        and "task.sampling: identities" in phase.uncounted
    )
    assert not make().phases(None)[0].uncounted  # type: ignore
    stream = make(sampling="identities", pictures=3, **TRIPLET).streams("train")[""]
    assert (stream.sampling, stream.by, stream.together) == ("identities", "identity", 3)
    assert make().streams("train")[""].sampling == "shuffled" and make().streams("val")[""].sampling == "sequential"


def test_it_exports_without_its_directions():
    import onnxruntime

    from mapsto.compress.export import random_inputs, to_onnx

    task = make(model={"name": "resnet10t", "dimensions": 4})
    model = task.build({}).eval()
    session = onnxruntime.InferenceSession(to_onnx(task.forward, model, task.export()))
    inputs = random_inputs(task.export(), 3)
    with torch.no_grad():
        ours = model(torch.from_numpy(inputs["image"])).numpy()
    np.testing.assert_allclose(session.run(None, inputs)[0], ours, atol=1e-5)
