"""Verification and retrieval against scikit-learn, every threshold, and lists written by hand."""

import json

import numpy as np
import pytest
import scipy.sparse.csgraph
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.neighbors import NearestNeighbors

from mapsto.core.errors import UserError
from mapsto.core.metrics import verification
from mapsto.core.metrics.folds import (
    apart,
    best_threshold,
    drawn_folds,
    file_key,
    fold_accuracies,
    interval,
    listed_folds,
    parse_pairs,
    picture_key,
)
from mapsto.core.metrics.verification import VerificationMetrics, pair_scores, recall, roc, roc_auc, tar_at_far
from mapsto.core.page import Page


def vectors(rng, rows, dimensions=6):
    v = rng.normal(size=(rows, dimensions))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(6, 60), people=st.integers(2, 6), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_pairs_auc_and_rates_are_scikit_learns(seed, rows, people, ties):
    rng = np.random.default_rng(seed)
    embedding, identity = vectors(rng, rows), np.concatenate([[0, 0, 1], rng.integers(0, people, rows - 3)])
    genuine, impostor = pair_scores(embedding, identity)
    a, b = np.triu_indices(rows, 1)
    assert (len(genuine), len(impostor)) == tuple(np.bincount(identity[a] != identity[b], minlength=2))
    if ties:
        genuine, impostor = genuine.round(1), impostor.round(1)
    truth, scores = np.repeat([1, 0], [len(genuine), len(impostor)]), np.concatenate([genuine, impostor])
    assert roc_auc(genuine, impostor) == pytest.approx(sk.roc_auc_score(truth, scores))
    fpr, tpr, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    for far in (0.0, 1e-3, 0.01, 0.2, 1.0):
        assert tar_at_far(genuine, impostor, far) == pytest.approx(tpr[fpr <= far + 1e-12].max())
    curve = roc(genuine, impostor, points=12)
    points = list(zip(curve["far"], curve["tar"], strict=True))
    assert len(points) <= 12 and points == sorted(points) and points[-1] == (1, 1)
    assert points[0] == pytest.approx((0, tpr[fpr == 0].max()))
    for point in points:
        assert np.abs(np.stack([fpr, tpr], 1) - point).max(1).min() < 1e-9


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_recall_is_that_of_the_nearest_neighbours(seed, rows):
    rng = np.random.default_rng(seed)
    embedding, identity = vectors(rng, rows), np.concatenate([[0, 0], rng.integers(0, 8, rows - 2)])
    order = NearestNeighbors(n_neighbors=6, metric="euclidean").fit(embedding).kneighbors(return_distance=False)
    asked = np.array([(identity == k).sum() > 1 for k in identity])
    ours = recall(embedding, identity, (1, 5))
    for k in (1, 5):
        hit = (identity[order[:, :k]] == identity[:, None]).any(1)
        assert ours[k] == pytest.approx(hit[asked].mean())


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    metrics = VerificationMetrics("label")
    states = metrics.state({"embedding": vectors(rng, 50)}, {"label": rng.integers(0, 5, 50)})
    whole, bad = metrics.compute(states), metrics.badness(states)
    monkeypatch.setattr(verification, "BLOCK", 7)
    assert metrics.compute(states) == pytest.approx(whole)
    np.testing.assert_allclose(metrics.badness(states), bad, atol=1e-6)


def test_scores_by_hand():
    genuine, impostor = np.array([0.9, 0.8, 0.3], np.float32), np.linspace(0, 0.85, 100).astype(np.float32)
    assert tar_at_far(genuine, impostor, 1e-2) == pytest.approx(1 / 3)  # one impostor may pass: 0.85; 0.8 < the second
    assert tar_at_far(genuine, impostor, 0.1) == pytest.approx(2 / 3)
    perfect = VerificationMetrics("label")
    eye = np.repeat(np.eye(6, dtype=np.float32), 3, 0)
    values = perfect.compute(perfect.state({"embedding": eye}, {"label": np.repeat(np.arange(6), 3)}))
    assert values == {
        "auc": 1.0, "tar@far=0.01": 1.0, "tar@far=0.001": 1.0, "recall@1": 1.0, "recall@5": 1.0, "fold_accuracy": 1.0, "fold_error": 0.0,
        "fold_largest": 1 / 3,
    }  # fmt: skip
    assert (
        perfect.badness(perfect.state({"embedding": eye}, {"label": np.repeat(np.arange(6), 3)})).tolist() == [0] * 18
    )
    swapped = np.array([0, 1, 0, 1])  # each row's likest is of the other identity
    pair = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert perfect.badness({"embedding": pair, "identity": swapped}).tolist() == [1.0] * 4


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 30), ties=st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_best_threshold_is_best_of_all(seed, count, ties):
    rng = np.random.default_rng(seed)
    scores, same = rng.uniform(-1, 1, count).astype(np.float32), rng.random(count) < 0.5
    if ties:
        scores = scores.round(1)
    threshold = best_threshold(scores, same)
    best = max(((scores >= t) == same).mean() for t in [-np.inf, *scores, np.inf])
    assert ((scores >= threshold) == same).mean() == pytest.approx(best)


def test_the_page_has_the_curve_and_thresholds_that_keep_their_rates():
    rng = np.random.default_rng(3)
    metrics, identity = VerificationMetrics("label"), np.repeat(np.arange(40), 5)
    embedding = vectors(rng, 40)[identity] + 0.15 * rng.normal(size=(200, 6))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    states = metrics.state({"embedding": embedding}, {"label": identity})
    genuine, impostor = pair_scores(states["embedding"], identity)
    tables = json.loads(json.dumps(metrics.tables(states), allow_nan=False))
    assert [row["far"] for row in tables["rates"]] == [0.1, 0.01, 0.001, 0.0001]
    for row in tables["rates"]:
        assert (impostor >= row["least"]).mean() <= row["far"]
        assert (genuine >= row["least"]).mean() == pytest.approx(row["tar"], abs=0.01)
    assert len(tables["roc"]["far"]) <= 200 and tables["open_set"]["gallery"] == 20
    page = Page("faces")
    metrics.draw(page, tables)
    for said in (
        "Receiver operating characteristic",
        "over all pairs",
        "Open-set identification",
        "false acceptance rate at most",
    ):
        assert said in page.html()
    values = metrics.compute(states)
    assert values["dir@fpir=0.1"] == tables["open_set"]["rates"][0]["dir"] and "dir@fpir=0.01" in values


def test_folds_are_decided_by_the_others_and_have_an_interval():
    folds = [
        (np.array([0.9, 0.1]), np.array([True, False])),
        (np.array([0.8, 0.2]), np.array([True, False])),
        (np.array([0.4, 0.3]), np.array([True, False])),  # the others' threshold is 0.5
    ]
    accuracies = fold_accuracies(folds)
    assert accuracies.tolist() == [1.0, 1.0, 0.5]
    error, (low, high) = interval(accuracies)
    assert error == pytest.approx(scipy.stats.sem(accuracies))
    assert (low, high) == pytest.approx(scipy.stats.t.interval(0.95, 2, accuracies.mean(), scipy.stats.sem(accuracies)))
    assert interval(np.array([0.7])) is None


@given(seed=st.integers(0, 2**32 - 1), people=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_drawn_folds_share_no_identity(seed, people):
    rng = np.random.default_rng(seed)
    identity = rng.permutation(np.repeat(np.arange(people), 3))
    marked = np.eye(people, dtype=np.float32)[identity] + np.arange(1, people + 1)[identity, None] * 0
    folds = drawn_folds(marked, identity)
    assert len(folds) == (min(10, people // 2) if people >= 4 else 0)
    assert sum(int(same.sum()) for _, same in folds) == (3 * people if folds else 0)
    for scores, same in folds:
        assert (scores == same).all()  # one-hot: 1 for one identity
        assert 0 < (~same).sum() <= same.sum()


TEN = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t3\nBob\t1\t3\nBob\t0001\tCid\t2\n"


def test_a_list_of_pairs_with_folds_and_without():
    pairs = parse_pairs(TEN, "pairs.txt")
    assert [fold[:, 2].tolist() for fold in pairs.folds] == [[1, 0], [1, 0]]
    assert pairs.folds[0][1, :2].tolist() == [picture_key("Ann", 1), file_key("images/Bob/Bob_0003.jpg")]
    plain = parse_pairs("2\nA_B 1 2\nA_B 1 3\nA_B 1 C 1\nC 2 A_B 1\n", "dev.txt")
    assert sum(len(fold) for fold in plain.folds) == 4 and file_key("A_B_0002.pgm") == picture_key("A_B", 2)
    assert file_key("7.pgm") == -1


@given(seed=st.integers(0, 2**32 - 1), people=st.integers(2, 60), count=st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_a_list_without_folds_is_parted_by_people(seed, people, count):
    rng = np.random.default_rng(seed)
    alike = [(name, name) for name in rng.integers(0, people, count).astype(str).tolist()]
    pairs = alike + [tuple(rng.choice(people, 2, replace=False).astype(str).tolist()) for _ in range(count)]
    folds = apart(pairs)
    held = [{person for number in fold for person in pairs[number]} for fold in folds]
    assert sum(map(len, held)) == len(set().union(*held))  # nobody is in two
    assert sorted(number for fold in folds for number in fold) == list(range(2 * count))
    joined = joined_people(pairs)
    assert len(folds) == min(10, len(joined)) and all(folds)
    lines = [f"p{a} 1 2" if a == b else f"p{a} 1 p{b} 1" for a, b in pairs]
    listed = parse_pairs("\n".join([str(count), *lines]), "dev.txt")
    assert [len(fold) for fold in listed.folds] == [len(fold) for fold in folds]


def joined_people(pairs):
    """The groups of people whom pairs join, by SciPy."""
    names = sorted({person for pair in pairs for person in pair})
    ends = np.array([[names.index(a), names.index(b)] for a, b in pairs])
    graph = scipy.sparse.coo_matrix((np.ones(len(ends)), ends.T), (len(names),) * 2)
    count, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return [{names[i] for i in np.flatnonzero(label == k)} for k in range(count)]


def test_parted_folds_hold_as_many_pairs_of_either_kind():
    pairs = [(f"{k}", f"{k}") for k in range(100)] + [(f"{k}", f"{k + 1}") for k in range(0, 100, 2)]
    kinds = [[pairs[number][0] == pairs[number][1] for number in fold] for fold in apart(pairs)]
    assert [(sum(kind), len(kind) - sum(kind)) for kind in kinds] == [(10, 5)] * 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "pairs.txt:1: a list of pairs begins with"),
        ("ten 300\n", "pairs.txt:1: a list"),
        ("0\n", "pairs.txt:1: a list"),
        ("2\t1\nAnn 1 2\n", r"pairs.txt: 1 pairs, its first line says 4"),
        (TEN.replace("Ann\t1\t2", "Ann\t1"), r"pairs.txt:2: 'Ann 1' is no pair; here it is `name i j`"),
        (TEN.replace("Bob\t1\t3", "Bob\t1\tx"), r"pairs.txt:4: 'Bob 1 x' is no pair"),
        (TEN.replace("Ann\t1\tBob\t3", "Ann\t1\t3"), r"pairs.txt:3: 'Ann 1 3' is no pair; here it is `name i other j`"),
    ],
)
def test_a_broken_list_names_its_line(text, said):
    with pytest.raises(UserError, match=said):
        parse_pairs(text, "pairs.txt")


def test_pairs_of_absent_people_are_counted():
    pairs = parse_pairs(TEN, "pairs.txt")
    names = [("Ann", 1), ("Ann", 2), ("Bob", 3)]
    keys = np.array([picture_key(*name) for name in names])
    embedding = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    folds, missing = listed_folds(embedding, keys, pairs)
    assert missing == 2 and [(s.tolist(), t.tolist()) for s, t in folds] == [([1.0, 0.0], [True, False])]
    metrics = VerificationMetrics("label", pairs)
    batch = {"label": np.array([0, 0, 1]), "picture": keys}
    values = metrics.compute(metrics.state({"embedding": embedding}, batch))
    assert (values["fold_accuracy"], values["pairs_missing"]) == (1.0, 2.0) and "fold_error" not in values
    assert "a single fold, decided by its own best threshold" in drawn_page(metrics, {"embedding": embedding}, batch)
    none = metrics.state({"embedding": embedding}, batch | {"picture": np.full(3, -1)})
    assert "fold_accuracy" not in metrics.compute(none) and metrics.compute(none)["pairs_missing"] == 4.0
    with pytest.raises(UserError, match=r"pairs.txt: of its 4 pairs none has both pictures among the 3 rows"):
        metrics.tables(none)


def test_folds_that_pairs_make_unequal_are_told():
    """400 people and 1,000 pairs at random, by which most of them are joined."""
    rng = np.random.default_rng(0)
    alike = [f"p{k} 1 2" for k in rng.integers(0, 400, 500)]
    unlike = ["p{} 1 p{} 1".format(*rng.choice(400, 2, replace=False)) for _ in range(500)]
    metrics = VerificationMetrics("label", parse_pairs("\n".join(["500", *alike, *unlike]), "dev.txt"))
    pictures = [(person, number) for person in range(400) for number in (1, 2)]
    batch = {
        "label": np.array([person for person, _ in pictures]),
        "picture": np.array([picture_key(f"p{person}", number) for person, number in pictures]),
    }
    output = {"embedding": vectors(rng, 800)}
    held = [len(fold) for fold in metrics.pairs.folds]
    assert max(held) > 900 and min(held) < 20 and sum(held) == 1000
    assert metrics.compute(metrics.state(output, batch))["fold_largest"] == max(held) / 1000
    assert f"The folds hold {min(held)} to {max(held)} pairs, and the mean counts them alike" in drawn_page(
        metrics, output, batch
    )


def drawn_page(metrics, output, batch):
    page = Page("faces")
    metrics.draw(page, json.loads(json.dumps(metrics.tables(metrics.state(output, batch)))))
    return page.html()


def test_a_split_without_pairs_says_so():
    metrics = VerificationMetrics("label")
    for label, said in (([0, 1, 2], "no two rows are of one identity"), ([1, 1, 1], "all rows are of one identity")):
        with pytest.raises(UserError, match=said):
            metrics.compute(metrics.state({"embedding": np.eye(3)}, {"label": np.array(label)}))
