"""Index and search: every row once, neighbours as exact search has them, a killed run goes on, and clear refusals."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from mapsto import cli
from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, encode
from mapsto.core.errors import UserError
from mapsto.core.metrics.identification import FPIR, dir_at_fpir, probes
from mapsto.core.preprocess import Preprocess
from mapsto.core.registry import save_task
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.curate.features import CLASSICAL, colour
from mapsto.data.dataset import Dataset
from mapsto.data.scenes import numbered
from mapsto.stages import index, ingest
from mapsto.stages.index import build, recall
from mapsto.stages.index_vectors import read_columns, vectors_of
from mapsto.stages.pipeline import Pipeline
from mapsto.stages.search import Searcher, indexed, search
from mapsto.tasks.classify import Classify, ClassifyConfig


def here(work, numbers):
    """What the Ray tasks do, here, with work that has travelled."""
    work = pickle.loads(pickle.dumps(work))
    for number in numbers:
        work(number)
        yield number


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for module in (ingest, index):
        monkeypatch.setattr(module, "each", here)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes in three splits, one picture twice."""
    folder = tmp_path_factory.mktemp("images")
    for k in range(24):
        split = "train" if k < 14 else "val" if k < 19 else "test"
        path = folder / split / "ab"[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(numbered(21, k if k != 23 else 3, (48, 60)).image, "png"))  # test/b/23 is train/b/03
    return folder


@pytest.fixture
def file(source, tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: trial\nroot: {tmp_path}/artifacts\ndata: {{train: {{source: {source}}}}}\n"
        "task: {kind: classify, model: {name: resnet10t}, image_size: 32}\n"
    )
    return path


def made(file: Path, *overrides: str):
    recipe, said = load(str(file), list(overrides)), []
    artifact = Pipeline(recipe, said.append).produce("index", {"role": "train"})
    return recipe, artifact, "\n".join(said)


def rows_of(artifact) -> list[dict]:
    dataset = Dataset.open(type(artifact)(artifact.meta()["parents"]["data"]["uri"], artifact.storage))
    return [row | {"split": split} for split in dataset.manifest["splits"] for row in dataset.read(split)]


@pytest.mark.parametrize("kind", sorted(CLASSICAL))
def test_every_row_has_its_vector_once_and_neighbours_are_the_exact_ones(file, kind):
    _, artifact, _ = made(file, f"index.features={kind}")
    rows, about = rows_of(artifact), artifact.read_json("index.json")
    assert about["rows"] == len(rows) == 24 and about["metric"] == "cosine"
    tables = [read_columns(artifact, k, ("row_id", "vector")) for k in range(len(about["shards"]))]
    vectors = dict(
        zip(np.concatenate([t["row_id"] for t in tables]).tolist(), np.concatenate([vectors_of(t) for t in tables]))
    )
    assert set(vectors) == {row["row_id"] for row in rows}
    exact = {row["row_id"]: CLASSICAL[kind](decode(row["image"])) for row in rows}
    for row_id, vector in vectors.items():
        np.testing.assert_allclose(vector.astype(np.float32), exact[row_id], atol=5e-4)
    searcher = Searcher(artifact)
    for row_id, vector in exact.items():
        expected = sorted((float(vector @ other) for k, other in exact.items() if k != row_id), reverse=True)[:5]
        hits = searcher.nearest(vector, 5, searcher.place(row_id))
        np.testing.assert_allclose([hit.similarity for hit in hits], expected, atol=2e-3)
        assert row_id not in {hit.row_id for hit in hits}
    metrics = artifact.meta()["metrics"]
    assert metrics["recall_at_10"] == 1.0 and metrics["images"] == 24 and metrics["dimension"] == len(exact[0])


def test_a_row_is_looked_up_in_the_row_index(file, monkeypatch):
    _, artifact, _ = made(file)
    searcher, truth = Searcher(artifact), rows_of(artifact)
    monkeypatch.setattr("mapsto.stages.search.read_columns", None)  # the vectors' shards
    assert sorted(searcher.place(row["row_id"]) for row in truth) == list(range(len(truth)))
    with pytest.raises(UserError, match="--row 99999: no row of"):
        searcher.place(99999)


def test_search_by_image_finds_it_and_its_copy_with_their_places(file, source, tmp_path):
    recipe, artifact, _ = made(file)
    page = tmp_path / "page.html"
    lines = list(search(recipe, image=str(source / "train/b/03.png"), top=3, output=str(page)))
    assert lines[0].split() == ["rank", "similarity", "split", "row_id", "label", "source"]
    found = [line.split() for line in lines[1:4]]
    assert [row[0] for row in found] == ["1", "2", "3"] and {row[2] for row in found[:2]} == {"train", "test"}
    assert {Path(row[5]).name for row in found[:2]} == {"03.png", "23.png"} and found[0][4] == "b"
    assert [float(row[1]) for row in found[:2]] == pytest.approx([1, 1], abs=1e-3) and float(found[2][1]) < 1
    assert page.read_text().count("<img") == 4 and lines[4] == f"page: {page}"
    ids = {Path(row["source"]).name: row["row_id"] for row in rows_of(artifact)}
    by_row = [line.split() for line in search(recipe, row=ids["03.png"], top=100)][1:]
    assert len(by_row) == 23 and by_row[0][3] == str(ids["23.png"])


def test_what_is_not_alike_enough_is_unknown(file, source, tmp_path, capsys):
    made(file)
    asked, page = ["search", str(file), "--image", str(source / "train/a/00.png"), "--top", "5"], tmp_path / "page.html"
    assert cli.main(asked) == 0
    plain = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[1]) for line in plain[1:]]
    between = (scores[1] + scores[2]) / 2
    assert cli.main([*asked, "--least", str(between)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [line.split() for line in plain[:3]]
    recipe = load(str(file), [])
    lines = list(search(recipe, row=rows_of(indexed(recipe))[0]["row_id"], top=1, least=1.0, output=str(page)))
    assert lines[0].split()[0] == "rank" and lines[1].startswith("unknown: nothing at least 1 alike (the nearest is 0.")
    assert lines[2] == f"page: {page}" and "Unknown: nothing at least 1 alike" in page.read_text()
    assert cli.main([*asked, "--least", "1.5"]) == 2
    assert "--least 1.5: a similarity, from -1 to 1" in capsys.readouterr().err


def test_the_command_line(file, source, capsys):
    image = str(source / "test/b/23.png")
    assert cli.main(["search", str(file), "--image", image]) == 2
    told = capsys.readouterr().err
    assert "no index yet, nor the ingest artifact before it" in told and "`mapsto index RECIPE`" in told
    assert not Path(load(str(file), []).root).exists()  # a search makes nothing
    made(file)
    assert cli.main(["search", str(file), "--image", image, "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert cli.main(["search", str(file), "--image", image, "--set", "index.features=lbp"]) == 2
    assert "trial: no index yet (" in capsys.readouterr().err
    for arguments, said in (
        (["--image", str(file)], f"{file}: not an image that can be read: unknown format"),
        (["--image", "/nowhere/x.png"], "/nowhere/x.png: not found"),
        (["--row", "999"], "no row of"),
        (["--row", "0", "--top", "0"], "--top 0: at least 1"),
        (["--row", "0", "--role", "style"], "the recipe has no such data set"),
    ):
        assert cli.main(["search", str(file), *arguments]) == 2
        assert said in capsys.readouterr().err
    for wrong in ([], ["--row", "0", "--image", image]):
        with pytest.raises(SystemExit):
            cli.main(["search", str(file), *wrong])


def test_the_verb_indexes_the_training_set_or_the_role_that_is_asked_for(file, monkeypatch):
    asked: list[tuple] = []
    monkeypatch.setattr("mapsto.stages.pipeline.produce", lambda _, name, options, **__: asked.append((name, options)))
    file.write_text(file.read_text().replace("}}\n", "}, style: {source: /nowhere}}\n", 1))
    for words in ([], ["--role", "style"]):
        arguments = cli._parser().parse_args(["index", str(file), *words])
        assert cli._produce(load(str(file), []), arguments, {}) == 0
    assert asked == [("index", {"role": "train"}), ("index", {"role": "style"})]
    with pytest.raises(UserError, match="--role other: the recipe's data sets are train, style"):
        cli._produce(load(str(file), []), cli._parser().parse_args(["index", str(file), "--role", "other"]), {})


def test_an_interrupted_run_goes_on_with_the_shards_that_are_left(file, monkeypatch):
    def dies(work, numbers):
        yield from here(work, list(numbers)[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "each", dies)
    with pytest.raises(KeyboardInterrupt):
        made(file)
    asked: list[int] = []

    def counts(work, numbers):
        asked.extend(numbers)
        yield from here(work, numbers)

    monkeypatch.setattr(index, "each", counts)
    recipe, artifact, said = made(file)
    assert asked == [2] and "the vectors of 2 of 3 shards are there already" in said
    whole = artifact.meta()["digest"]
    Pipeline(recipe, lambda _: None).produce("index", {"role": "train"}, force=True)
    assert artifact.meta()["digest"] == whole and indexed(recipe).uri == artifact.uri


def test_a_graph_that_is_not_what_was_written_is_refused(file):
    recipe, artifact, _ = made(file)
    graph = Path(artifact.path("graph.usearch"))
    whole = graph.read_bytes()
    for broken in (b"", whole[:100], whole[: len(whole) // 2], whole[:-9] + b"123456789"):
        graph.write_bytes(broken)
        with pytest.raises(UserError, match=r"graph\.usearch: not what was written \(sha256\); make it anew"):
            list(search(recipe, row=0))


@pytest.mark.parametrize("kind", sorted(CLASSICAL))
def test_the_baseline_is_a_nearest_neighbour_classifiers_accuracy(file, kind):
    from sklearn.neighbors import KNeighborsClassifier

    _, artifact, _ = made(file, f"index.features={kind}")
    known: dict[str, list] = {"train": [], "other": []}
    for number, about in enumerate(artifact.read_json("index.json")["shards"]):
        table = read_columns(artifact, number, ("label", "vector"))
        rows = zip(vectors_of(table).astype(np.float64), table["label"].to_pylist(), strict=True)
        known["train" if about["split"] == "train" else "other"] += list(rows)
    train, other = (tuple(zip(*known[name], strict=True)) for name in ("train", "other"))
    judge = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(*map(np.array, train))
    assert artifact.meta()["metrics"]["knn_accuracy"] == judge.score(*map(np.array, other))


def test_recall_is_the_share_of_exact_neighbours_found(file):
    _, artifact, _ = made(file)

    class Half:
        """Answers with the exact neighbours, every second one replaced by the farthest."""

        def __init__(self, vectors):
            self.vectors = vectors

        def __len__(self):
            return len(self.vectors)

        def search(self, query, count):
            order = np.argsort(-(self.vectors @ query), kind="stable")
            keys = np.concatenate([order[:1], order[1:11:2], order[-6:]])[:count]
            return type("Found", (), {"keys": keys})()

    parts = [vectors_of(read_columns(artifact, k, ("vector",))) for k in range(3)]
    vectors = np.concatenate(parts).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert recall(artifact, 3, Half(vectors)) == pytest.approx(0.5, abs=0.03)  # the two copies may change places


def test_images_without_edges_are_counted(source, tmp_path):
    folder = tmp_path / "flat"
    for k in range(6):
        path = folder / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            encode(np.full((20, 20, 3), 40 * k, np.uint8) if k < 2 else numbered(3, k, (40, 40)).image, "png")
        )
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"name: flat\nroot: {tmp_path}/out\ndata: {{train: {{source: {folder}, splits: {{val: 0, test: 0}}}}}}\n"
        "task: {kind: classify}\nindex: {features: hog}\n"
    )
    recipe, artifact, said = made(file)
    assert artifact.meta()["metrics"]["blank"] == 2 and "2 of 6 images have no hog features" in said
    with pytest.raises(UserError, match=r"0\.png: the image has no hog features"):
        list(search(recipe, image=str(folder / "a" / "0.png")))


def test_a_timm_backbones_features(file, source):
    from timm import create_model

    recipe, artifact, _ = made(
        file, "index.features=model", "index.backbone=resnet10t", "index.pretrained=false", "index.image_size=32"
    )
    searcher = Searcher(artifact)
    row = next(row for row in rows_of(artifact) if Path(row["source"]).name == "03.png")
    image, _ = Preprocess(32)(row["image"])
    torch.manual_seed(0)
    net = create_model("resnet10t", num_classes=2).eval()
    mean, std = (torch.tensor(net.default_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        x = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
        expected = net.forward_features(x[None]).mean((2, 3))[0]
    expected = (expected / expected.norm()).numpy()
    np.testing.assert_allclose(searcher.vector(searcher.place(row["row_id"])), expected, atol=1e-3)
    hits = [line.split() for line in search(recipe, row=row["row_id"], top=1)]
    assert Path(hits[1][5]).name == "23.png"


def test_the_trained_models_features(file, tmp_path, monkeypatch):
    """A saved model stands for training; with a sweep in the recipe, its best setting decides whose model it is."""
    made_for: list[int] = []
    produce = Pipeline.produce

    def given(self, name, options=None, *, force=None):
        if name == "train":
            made_for.append(self.recipe.train.batch_size)
            return model
        if name == "tune":
            return best
        return produce(self, name, options, force=force)

    monkeypatch.setattr(Pipeline, "produce", given)
    task = Classify(
        ClassifyConfig(kind="classify", model={"name": "resnet20"}, image_size=32),
        {"train": DatasetInfo("memory", "0", ("a", "b"), {"train": 14}, ("image", "label"))},
    )
    storage = Storage(retries=0)
    model, best = (Artifact(str(tmp_path / "made" / name / "0"), storage) for name in ("train", "tune"))
    torch.manual_seed(1)
    net = task.build({}).eval()
    model.write(save(net.state_dict()), "model.safetensors")
    save_task(task, model)
    model.write_json({"kind": "torch", "file": "model.safetensors", "precision": "fp32"}, "variant.json")
    best.write_json({"overrides": {"train.batch_size": 7}}, "best.json")
    for artifact in (model, best):
        artifact.finish(section={}, parents={}, metrics={}, digest="d")
    with file.open("a") as text:
        text.write("index: {features: model}\ntune: {space: {train.batch_size: {kind: choice, values: [7]}}}\n")
    recipe, artifact, _ = made(file)
    assert made_for == [7] and artifact.meta()["metrics"]["dimension"] == 64
    searcher = Searcher(artifact)
    row = next(row for row in rows_of(artifact) if Path(row["source"]).name == "03.png")
    image = torch.from_numpy(task.preprocess(row["image"])[0])[None]
    seen: list[torch.Tensor] = []
    net.net.linear.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    with torch.no_grad():
        net(image)
    np.testing.assert_allclose(
        searcher.vector(searcher.place(row["row_id"])), (seen[0] / seen[0].norm())[0].numpy(), atol=1e-3
    )
    lines = [line.split() for line in search(recipe, row=row["row_id"], top=1)]
    assert Path(lines[1][5]).name == "23.png"


def test_settings_that_do_not_fit_are_refused(file):
    with pytest.raises(UserError, match="backbone is of features: model, not of hog"):
        load(str(file), ["index.features=hog", "index.backbone=resnet18"])
    wrong = ["index.features=model", "index.backbone=resnat10t", "index.pretrained=false"]
    with pytest.raises(UserError, match=r"index\.backbone: 'resnat10t' is no timm model"):
        made(file, *wrong)
    data = file.read_text().split("task:")[0]
    for task in ("gan, image_size: 16", "detect, image_size: 64"):
        file.write_text(f"{data}task: {{kind: {task}}}\nindex: {{features: model}}\n")
        with pytest.raises(UserError, match="model gives no vector for an image; use colour, hog, lbp, or a timm"):
            made(file)
    assert colour(np.zeros((4, 4, 3), np.uint8)).any()  # black is a colour


def test_the_graph_identifies_whom_the_evaluation_does_at_its_threshold(tmp_path):
    """Open-set identification of 400 people, 200 of them known by one picture: by all products, and by the index."""
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(400), 4)
    embedding = (rng.normal(size=(400, 32))[identity] + 0.6 * rng.normal(size=(1600, 32))).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    found = probes(embedding, identity)
    names, first = np.unique(identity, return_index=True)
    drawn = np.sort(np.random.default_rng(0).permutation(400)[: found.gallery])
    gallery, known = np.sort(first[drawn]), np.isin(identity, names[drawn])
    artifact, data = Artifact(str(tmp_path / "index"), Storage()), io.BytesIO()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedding[gallery].astype(np.float16).ravel()), 32)
    pq.write_table(pa.table({"row_id": gallery, "vector": vectors}), data)
    artifact.write(data.getvalue(), "vectors", "000000.parquet")
    graph, _, _ = build(artifact, [found.gallery])
    asked = np.setdiff1d(np.arange(1600), gallery)
    matches = [graph.search(embedding[row], 1) for row in asked]
    likeness = np.array([1 - float(match.distances[0]) for match in matches])
    named = identity[gallery[[int(match.keys[0]) for match in matches]]]
    for ours, all_products in ((likeness[known[asked]], found.mated), (likeness[~known[asked]], found.others)):
        assert (np.abs(ours - all_products) < 2e-3).mean() > 0.98  # a graph may miss a nearest one
    assert ((named == identity[asked])[known[asked]] == found.right).mean() > 0.98
    for fpir in FPIR:
        rate, least = dir_at_fpir(found, fpir)
        ours = ((likeness > least) & (named == identity[asked]))[known[asked]].mean()
        assert ours == pytest.approx(rate, abs=0.01)
        assert (likeness > least)[~known[asked]].mean() == pytest.approx(fpir, abs=0.01)
