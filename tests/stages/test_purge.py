"""Purge: no copy is left in any file of any version, the rest is untouched, and a run cut off anywhere is finished."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mapsto import cli
from mapsto.config.curation import CleanConfig
from mapsto.config.schema import DataConfig
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, encode
from mapsto.core.errors import UserError
from mapsto.core.page import Page
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.data import chunks
from mapsto.data.dataset import MANIFEST, Dataset
from mapsto.stages import clean, clean_facts, ingest
from mapsto.stages import purge as module
from mapsto.stages.clean import Clean
from mapsto.stages.ingest import Ingest
from mapsto.stages.purge import purge
from mapsto.stages.purge_pages import without_pictures
from mapsto.stages.purge_plan import JOURNAL, Asked
from mapsto.stages.versions import verify

STORE = Storage(retries=0)
PIXELS = np.random.default_rng(5)
PICTURES = [encode(PIXELS.integers(0, 256, (32 + k, 40, 3), np.uint8), "png") for k in range(12)]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def here(work, numbers):
        for number in numbers:
            work(number)
            yield number

    for each in (ingest, clean, clean_facts):
        monkeypatch.setattr(each, "each", here)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 5)


def listed(folder: Path) -> list[dict]:
    """16 rows: 12 pictures in train (of them 11 is 0 again, for clean to quarantine), 3 in val, one that is broken."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(12):
        (folder / f"{k}.png").write_bytes(PICTURES[0] if k == 11 else PICTURES[k])
        boxes = [[1, 1, 9, 9], [2, 3, 20, 30]]
        rows.append({
            "image": f"{k}.png", "label": "ab"[k % 2], "split": "val" if k in (8, 9, 10) else "train",
            "identity": f"person-{k % 4}", "boxes": [*boxes[: 1 + k % 2], [5, 5, 5, 9]], "box_labels": [*["a", "b"][: 1 + k % 2], "b"],
        })  # fmt: skip
    (folder / "anna.png").write_bytes(b"no picture")
    return [*rows, {"image": "anna.png", "label": "a", "split": "train", "identity": "person-3"}]


def recipe(source: Path):
    config = DataConfig(source=str(source), splits={"val": 0, "test": 0})
    task = SimpleNamespace(kind="classify")
    return SimpleNamespace(name="trial", data={"train": config}, clean=CleanConfig(), task=task)


def made(uri: str, stage, config, parents, storage=STORE) -> Dataset:
    artifact = Artifact(uri, storage)
    section = stage.section(config, {})
    artifact.begin({}, section, parents)
    done = stage.run(Job(config, section, parents, artifact, storage, False, {}, print))
    artifact.finish(section=section, parents=parents, metrics=done.metrics, digest=done.digest)
    return Dataset.open(artifact)


def ingested(source: Path, uri: str, rows: list[dict], storage=STORE) -> Dataset:
    path = source / f"m{len(rows)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made(uri, Ingest(), recipe(path), {}, storage)


def world(root: str, source: Path, storage=STORE) -> dict[str, Dataset]:
    """An ingest, its cleaned version, another ingest of some of the same pictures, a model and its evaluation."""
    rows = listed(source)
    first = ingested(source, f"{root}/trial/ingest/0000", rows, storage)
    cleaned = made(f"{root}/trial/clean/0001", Clean(), recipe(source), {"data": first.artifact}, storage)
    copies = source / "copies"
    copies.mkdir()
    for k in (0, 2, 4, 5):
        shutil.copy(source / f"{k}.png", copies / f"copy-{k}.png")
    others = [{"image": f"copies/copy-{k}.png", "label": "a", "split": "train"} for k in (5, 4, 2, 0)]
    other = ingested(source, f"{root}/trial/ingest/0002", others, storage)
    page = Page("Evaluation")
    page.picture(PICTURES[0], "row 1, in truth a")
    page.picture(b"<svg>a chart</svg>")
    made_from = (
        ("train", {"data.train": cleaned.artifact}),
        ("evaluate", {"model": "train"}),
        ("index", {"data": cleaned.artifact}),
    )
    for stage, parents in made_from:
        artifact = Artifact(f"{root}/trial/{stage}/0009", storage)
        parents = {k: Artifact(f"{root}/trial/train/0009", storage) if v == "train" else v for k, v in parents.items()}
        artifact.begin({}, {}, parents)
        if stage == "evaluate":
            artifact.write(page.html().encode(), "report.html")
        if stage == "index":
            artifact.write(b"a vector of each row", "vectors", "000000.parquet")
        artifact.finish(section={}, parents=parents, metrics={}, digest="0")
    storage.write(f"{root}/trial/report.html", page.html().encode())
    return {"first": first, "cleaned": cleaned, "other": other}


@pytest.fixture
def made_world(tmp_path):
    return world(str(tmp_path / "out"), tmp_path / "images")


def everything(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def rows_of(dataset: Dataset, settled=True) -> dict[str, list[dict]]:
    dataset = Dataset.open(dataset.artifact)
    wrong = verify(dataset)
    if not settled:  # between a manifest and its artifact.json, verify says that the two differ
        wrong = [line for line in wrong if "names other classes or shards" not in line]
    assert wrong == []
    return {split: dataset.read(split) for split in dataset.manifest["splits"]}


def row_id(dataset: Dataset, name: str) -> int:
    rows = [row for each in rows_of(dataset).values() for row in each]
    return next(row["row_id"] for row in rows if row["source"].endswith(f"/{name}"))


def erased(uri, *, yes=True, storage=STORE, **asked) -> str:
    return "\n".join(purge(str(uri), Asked(**asked), storage, yes=yes))


def without(rows: dict[str, list[dict]], *pictures: int) -> dict[str, list[dict]]:
    gone = {hashlib.sha256(PICTURES[k]).hexdigest() for k in pictures}
    left = {split: [row for row in each if row["content_sha256"] not in gone] for split, each in rows.items()}
    return {split: each for split, each in left.items() if each}


def test_a_row_goes_from_every_version_and_file(made_world, tmp_path):
    root, first = tmp_path / "out", made_world["first"]
    before = {name: rows_of(dataset) for name, dataset in made_world.items()}
    assert sum(PICTURES[0] in data for data in everything(root).values()) >= 3  # it is there to be found
    digests = {name: dataset.artifact.meta()["digest"] for name, dataset in made_world.items()}
    states = everything(root)
    told = erased(first.artifact.uri, rows=(row_id(first, "0.png"),), yes=False)
    assert everything(root) == states and "nothing was changed" in told
    assert "1 different images: 4 rows in 3 versions" in told and "1 in 1 quarantine files" in told
    assert "this model has seen the rows" in told and "sheet.jpg" in told and "evaluate/0009/report.html" in told
    assert f"{root}/trial/report.html" in told
    assert f"index {root}/trial/index/0009: has vectors of them: goes whole" in told
    told = erased(first.artifact.uri, rows=(row_id(first, "0.png"),))
    assert "no copy is left" in told
    after = everything(root)
    assert not [path for path, data in after.items() if PICTURES[0] in data]
    digest = hashlib.sha256(PICTURES[0]).hexdigest().encode()
    assert not [path for path, data in after.items() if digest in data]
    assert not [path for path in after if path.endswith((JOURNAL, "sheet.jpg")) or "/index/" in path]
    for path, data in after.items():
        assert not path.endswith(".html") or not (b"data:image/png" in data or b"data:image/jpeg" in data), path
    assert b"data:image/svg" in after[str(root / "trial/evaluate/0009/report.html")]
    for name, dataset in made_world.items():
        assert rows_of(dataset) == without(before[name], 0)
        assert dataset.artifact.meta()["digest"] != digests[name]
        manifest = Dataset.open(dataset.artifact).manifest
        assert manifest["rows_in"] == manifest["rows_kept"] + manifest["rows_quarantined"]
        assert manifest["erased"][0]["rows"] == {"first": 2, "cleaned": 1, "other": 1}[name]
    with pytest.raises(UserError, match="nothing to erase"):
        erased(root, source=str(tmp_path / "images" / "0.png"))


def test_the_manifest_is_that_of_an_ingest_without_the_rows(made_world, tmp_path):
    erased(tmp_path / "out", identity="person-1")
    rows = [row for row in listed(tmp_path / "again") if row["identity"] != "person-1"]
    wanted = ingested(tmp_path / "again", str(tmp_path / "new" / "trial" / "ingest" / "0"), rows).manifest
    got = Dataset.open(made_world["first"].artifact).manifest
    for name in (
        "counts",
        "objects",
        "formats",
        "longest_side",
        "pixels_from",
        "rows_in",
        "rows_kept",
        "reasons",
        "dropped",
    ):
        assert got[name] == wanted[name], name
    np.testing.assert_allclose(got["mean"], wanted["mean"], atol=1e-5)
    np.testing.assert_allclose(got["std"], wanted["std"], atol=1e-5)
    metrics = made_world["first"].artifact.meta()["metrics"]
    assert (metrics["images"], metrics["train"], metrics["val"]) == (9, 7, 2)
    cleaned = Dataset.open(made_world["cleaned"].artifact).manifest
    kept = [row for each in rows_of(made_world["cleaned"]).values() for row in each]
    assert sum(cleaned["longest_side"].values()) == len(kept) == cleaned["rows_kept"]
    pixels = [decode(row["image"]).reshape(-1, 3) / 255 for row in rows_of(made_world["cleaned"])["train"]]
    np.testing.assert_allclose(cleaned["mean"], np.mean([p.mean(0) for p in pixels], axis=0), atol=1e-5)


def test_a_source_goes_with_its_line_in_the_quarantine_and_on_the_page(made_world, tmp_path):
    first = made_world["first"]
    assert "anna.png" in Path(first.artifact.path("report.html")).read_text()
    told = erased(tmp_path / "out", source=str(tmp_path / "images" / "anna"))
    assert "0 rows in 0 versions" in told and "1 in 1 quarantine files" in told
    assert not [path for path, data in everything(tmp_path / "out").items() if b"anna.png" in data]
    manifest = Dataset.open(first.artifact).manifest
    assert manifest["rows_quarantined"] == 0 and manifest["reasons"] == {} and manifest["rows_in"] == 12


def test_shared_shards_are_rewritten_once_and_stay_shared(made_world, tmp_path):
    cleaned = made_world["cleaned"]

    def shared() -> set[str]:
        files = Dataset.open(cleaned.artifact).manifest["splits"]["val"]["files"]
        return {file["path"] for file in files}

    before = shared()
    assert all("/ingest/0000/shards/" in path for path in before)
    erased(cleaned.artifact.uri, rows=(row_id(cleaned, "8.png"),))
    assert all("/ingest/0000/shards/" in path for path in shared()) and shared() != before
    assert not any(Path(path).exists() for path in before)
    names = {file.uri for file in Dataset.open(made_world["first"].artifact).split("val").files}
    assert names == shared()


def test_a_split_may_end_and_a_whole_data_set_too(made_world, tmp_path):
    erased(tmp_path / "out", source=str(tmp_path / "images"))
    for dataset in made_world.values():
        manifest = Dataset.open(dataset.artifact).manifest
        assert manifest["splits"] == {} and manifest["rows_in"] == 0
    after = everything(tmp_path / "out")
    assert not [path for path in after if path.endswith((".parquet", ".jsonl")) and "findings" not in path]


class Killed(Exception):
    pass


def test_a_run_that_is_killed_at_any_write_is_finished_by_the_next(made_world, tmp_path, monkeypatch):
    root, first = tmp_path / "out", made_world["first"]
    wanted, uri = row_id(first, "0.png"), first.artifact.uri
    shutil.copytree(root, tmp_path / "saved")
    before = {name: rows_of(dataset) for name, dataset in made_world.items()}
    calls = 0
    kill = 10**9
    for name in ("write", "delete"):
        real = getattr(Storage, name)

        def counted(self, *given, real=real):
            nonlocal calls
            calls += 1
            if calls == kill:
                raise Killed
            return real(self, *given)

        monkeypatch.setattr(Storage, name, counted)
    erased(uri, rows=(wanted,))
    total, whole = calls, {}
    for name, dataset in made_world.items():
        whole[name] = Dataset.open(dataset.artifact).manifest
    assert total > 15
    for k in range(1, total + 1):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "saved", root)
        calls, kill = 0, k
        with pytest.raises(Killed):
            erased(uri, rows=(wanted,))
        kill = 10**9
        for name, dataset in made_world.items():
            assert rows_of(dataset, settled=False) in (before[name], without(before[name], 0))  # readable, and whole
        if k > 1:
            assert (root / "trial" / JOURNAL).exists()
        if k == 2:
            assert "--yes finishes it" in next(iter(purge(uri, Asked(rows=(wanted,)), STORE)))
        told = erased(uri, rows=(wanted,))
        assert "no copy is left" in told and (k == 1 or "finishing the erasure" in told)
        assert not [path for path, data in everything(root).items() if PICTURES[0] in data], k
        assert not (root / "trial" / JOURNAL).exists()
        for name, dataset in made_world.items():
            manifest = Dataset.open(dataset.artifact).manifest
            assert rows_of(dataset) == without(before[name], 0)
            same = ("counts", "mean", "std", "rows_in", "rows_kept", "reasons", "longest_side", "objects")
            assert {n: manifest[n] for n in same} == {n: whole[name][n] for n in same}
            assert [each["rows"] for each in manifest["erased"]] == [each["rows"] for each in whole[name]["erased"]]
            content = [f["sha256"] for s in manifest["splits"].values() for f in s["files"]]
            assert len(content) == len(set(content)) and dataset.artifact.meta()["digest"] != dataset.fingerprint[-16:]


def test_what_comes_between_an_erasure_that_was_cut_off_and_its_end(made_world, tmp_path, monkeypatch):
    root, first, cleaned = tmp_path / "out", made_world["first"], made_world["cleaned"]
    before = {name: rows_of(dataset) for name, dataset in made_world.items()}
    real = module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda *given: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        erased(root, source=str(tmp_path / "images" / "0.png"))  # its journal is the root's
    monkeypatch.setattr(module, "write_shard", real)
    files = [dict(file) for file in first.manifest["splits"]["train"]["files"]]
    for file in files:
        file["path"] = first.artifact.path(file["path"])
    late = Artifact(f"{root}/another/clean/0007", STORE)  # a version under another name, made meanwhile
    late.begin({}, {}, {"data": first.artifact})
    splits = {"train": {"rows": sum(file["rows"] for file in files), "files": files}}
    late.write_json(first.manifest | {"splits": splits, "before": first.artifact.uri, "rows_quarantined": 0}, MANIFEST)
    late.finish(section={}, parents={"data": first.artifact}, metrics={}, digest="0")
    erased(first.artifact.uri, rows=(row_id(first, "2.png"),))  # renames shards that the journal names
    told = erased(root, source=str(tmp_path / "images" / "0.png"))
    assert "finishing the erasure" in told and not (root / JOURNAL).exists()
    assert not [path for path, data in everything(root).items() if PICTURES[0] in data or PICTURES[2] in data]
    for name, dataset in made_world.items():
        assert rows_of(dataset) == without(before[name], 0, 2)
    assert rows_of(Dataset.open(late)) == {"train": rows_of(first)["train"]}
    assert cleaned.artifact.meta()["digest"] != cleaned.fingerprint.split(":")[1]


def test_the_proof_finds_what_was_left(made_world, tmp_path, monkeypatch):
    first = made_world["first"]
    stale = Path(first.artifact.path("shards")) / "train-999999.parquet"
    shutil.copy(next(Path(first.artifact.path("shards")).glob("train-*.parquet")), stale)
    monkeypatch.setattr(module, "_quarantine", lambda version, work: None)
    with pytest.raises(UserError, match=r"NOT complete: an erased row is still in .*quarantine"):
        erased(first.artifact.uri, rows=(row_id(first, "0.png"),))
    monkeypatch.undo()
    assert "no copy is left" in erased(first.artifact.uri, rows=(row_id(made_world["cleaned"], "1.png"),))
    assert not [path for path, data in everything(tmp_path / "out").items() if PICTURES[0] in data]


def test_row_ids_of_another_lineage_are_other_rows(made_world, tmp_path):
    other, first = made_world["other"], made_world["first"]
    before = rows_of(other)
    ids = {row["row_id"] for row in before["train"]}
    content = {row["content_sha256"] for row in before["train"]}
    mine = [row for each in rows_of(first).values() for row in each if row["content_sha256"] not in content]
    asked = next(row["row_id"] for row in mine if row["row_id"] in ids)
    erased(first.artifact.uri, rows=(asked,))
    assert rows_of(other) == before


def test_what_is_asked_wrongly(made_world, tmp_path, capsys):
    root, uri = tmp_path / "out", made_world["first"].artifact.uri
    states = everything(root)
    for where, asked, message in (
        (root, {"rows": (1,)}, "name its URI instead of the root"),
        (uri, {"rows": (999,)}, "no row 999"),
        (root, {"identity": "nobody"}, "nothing to erase"),
        (root, {"source": ""}, "would mean every row"),
        (root, {}, "one of --row, --identity and --source"),
        (root, {"identity": "a", "source": "b"}, "one of --row"),
        (tmp_path / "nowhere", {"identity": "a"}, "no data set here"),
        (root / "trial" / "train" / "0009", {"identity": "a"}, "not a finished data set"),
    ):
        with pytest.raises(UserError, match=message):
            erased(where, **asked)
    assert cli.main(["data", "purge", str(root), "--identity", "nobody", "--yes"]) == 2
    assert "nothing to erase" in capsys.readouterr().err
    assert cli.main(["data", "purge", uri, "--row", str(row_id(made_world["first"], "3.png"))]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert everything(root) == states
    shard = next(Path(uri).glob("shards/*.parquet"))
    data = shard.read_bytes()
    shard.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        erased(root, identity="person-1")
    shard.write_bytes(data)
    Artifact(f"{root}/trial/ingest/0005", STORE).begin({}, {}, {})
    with pytest.raises(UserError, match="an unfinished data set, which may hold copies"):
        erased(root, identity="person-1")


def test_over_s3(s3, tmp_path):
    root = f"{s3.uri('erasure')}/mapsto"
    made_there = world(root, tmp_path / "images", s3.storage)
    before = {name: rows_of(dataset) for name, dataset in made_there.items()}
    uri = made_there["other"].artifact.uri
    told = erased(uri, rows=(row_id(made_there["other"], "copy-0.png"),), storage=s3.storage)
    assert "no copy is left" in told
    for name, dataset in made_there.items():
        assert rows_of(dataset) == without(before[name], 0)
    assert not [path for path, data in everything(s3.folder / "erasure").items() if PICTURES[0] in data]


def test_a_page_without_photographs_stays_as_it_is():
    page = Page("A page", "of charts")
    page.picture(b"<svg/>", "a chart")
    page.table(("file", "reason"), [("/a/b.png", "truncated"), ("/a/c & d.png", "broken")])
    text = page.html()
    assert without_pictures(text, {"/x"}, "", "today") == text
    bare = without_pictures(text, {"/a/c & d.png"}, "", "today")
    assert "c &amp; d" not in bare and "/a/b.png" in bare and "erased on today" in bare
    assert "/a/" not in without_pictures(text, set(), "/a/", "today")
