"""The drawn data set: the same seed draws the same scene, and what it says of a scene is what the scene shows."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.spatial import ConvexHull

from mapsto.data.scenes import CLASSES, Scene, draw, numbered, write
from mapsto.data.scenes.__main__ import main
from mapsto.data.scenes.shapes import FAR, SHAPES
from mapsto.data.scenes.spoiled import WAYS, Pixels

SIZE = (48, 56)
COUNT = 24


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw(np.random.default_rng([3, i]), SIZE, label=CLASSES[i % len(CLASSES)]) for i in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    counts = write(root, COUNT, 7, (40, 40), spoiled=5, masks=True)
    assert counts == {"images": COUNT, "spoiled": 5, "classes": list(CLASSES)}
    return root


def _photographs(folder: Path) -> list[Path]:
    return sorted(p for split in ("train", "val", "test") for p in (folder / split).rglob("*") if p.is_file())


def test_the_same_generator_draws_the_same_scene() -> None:
    one, two = (draw(np.random.default_rng(5), SIZE) for _ in range(2))
    other = draw(np.random.default_rng(6), SIZE)
    assert np.array_equal(one.image, two.image) and np.array_equal(one.instances, two.instances)
    assert one.caption == two.caption
    assert not np.array_equal(one.image, other.image)


def test_shapes_and_types_are_as_promised(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (*SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.mask.shape == scene.instances.shape == SIZE and scene.mask.dtype == np.uint8
        assert scene.boxes.shape == (len(scene.box_labels), 4) and scene.boxes.dtype == np.float32
        assert scene.box_labels[0] == scene.label and scene.label in scene.caption


def test_boxes_are_tight_about_what_is_visible(scenes: list[Scene]) -> None:
    for scene in scenes:
        for index, box in enumerate(scene.boxes):
            seen = Image.fromarray((scene.instances == index + 1).astype(np.uint8))
            assert tuple(box) == seen.getbbox()


def test_the_mask_names_the_class_of_each_instance(scenes: list[Scene]) -> None:
    for scene in scenes:
        ids = [0, *(CLASSES.index(name) + 1 for name in scene.box_labels)]
        assert set(np.unique(scene.instances)) == set(range(len(ids)))
        for instance, class_id in enumerate(ids):
            assert set(scene.mask[scene.instances == instance]) == {class_id}


def test_the_main_body_is_big_and_the_biggest(scenes: list[Scene]) -> None:
    for scene in scenes:
        sides = scene.boxes[0, 2:] - scene.boxes[0, :2]
        areas = np.bincount(scene.instances.ravel())[1:]
        assert sides.max() > 0.3 * min(SIZE)
        assert areas.argmax() == 0
    assert sum(len(scene.boxes) for scene in scenes) > COUNT + 5  # and it is not always alone


def test_asked_for_classes_are_the_only_ones() -> None:
    for seed in range(6):
        scene = draw(np.random.default_rng(seed), (32, 32), ["cube", "star"])
        assert set(scene.box_labels) <= {"cube", "star"}


@pytest.mark.parametrize("name", ["sphere", "cube", "cylinder", "cone", "pyramid"])
def test_rays_meet_convex_solids_where_their_hull_is(name: str) -> None:
    shape, rng = SHAPES[name], np.random.default_rng(0)
    planes = ConvexHull(shape.hull.T.astype(np.float64)).equations  # normal . p + offset <= 0 inside
    start = rng.standard_normal((3, 400))
    start *= 3 / np.linalg.norm(start, axis=0)
    toward = rng.uniform(-0.8, 0.8, (3, 400)) - start
    t = shape.hit(start.astype(np.float32), toward.astype(np.float32))
    rate = planes[:, :3] @ toward
    reach = -(planes[:, :3] @ start + planes[:, 3:]) / rate
    enter, leave = np.where(rate < 0, reach, -np.inf).max(0), np.where(rate > 0, reach, np.inf).min(0)
    hit = t < FAR
    assert np.mean(hit == (enter <= leave)) > 0.97  # the hull of a round solid has flat sides, which graze less
    both = hit & (enter <= leave) & (np.linalg.norm(toward, axis=0) * (leave - enter) > 0.3)
    assert both.sum() > 50
    np.testing.assert_allclose(t[both], enter[both], atol=0.02)
    normal = shape.normal((start + t * toward)[:, both].astype(np.float32))
    face = planes[np.where(rate < 0, reach, -np.inf).argmax(0), :3].T[:, both]
    assert np.mean((normal * face).sum(0) > 0.98) > 0.97  # a few lie on an edge, where either side will do


@pytest.mark.parametrize("name", CLASSES)
def test_normals_are_unit_and_face_the_ray(name: str) -> None:
    shape, rng = SHAPES[name], np.random.default_rng(1)
    start = rng.standard_normal((3, 300)).astype(np.float32)
    start *= 3 / np.linalg.norm(start, axis=0)
    toward = rng.uniform(-0.5, 0.5, (3, 300)).astype(np.float32) - start
    t = shape.hit(start, toward)
    hit = t < FAR
    assert hit.mean() > 0.3
    normal = shape.normal((start + t * toward)[:, hit])
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-4)
    assert np.mean((normal * toward[:, hit]).sum(0) < 1e-3) > 0.98


@pytest.mark.parametrize(("name", "spoil"), WAYS)
def test_every_way_of_spoiling_a_file_stops_its_decoder(name: str, spoil: Callable[[Pixels], bytes]) -> None:
    for seed in range(12):
        spoiled = io.BytesIO(spoil(draw(np.random.default_rng(seed), (24, 30)).image))
        with pytest.raises((OSError, SyntaxError)), Image.open(spoiled) as image:
            image.load()


def test_sound_files_decode_and_spoiled_ones_do_not(folder: Path) -> None:
    sound, spoiled = 0, 0
    for path in _photographs(folder):
        if "spoiled" in path.name:
            with pytest.raises((OSError, SyntaxError)), Image.open(path) as image:
                image.load()
            assert path.relative_to(folder).parts[0] == "train"
            spoiled += 1
        else:
            with Image.open(path) as image:
                image.load()
            sound += 1
    assert (sound, spoiled) == (COUNT, 5)


def test_the_manifest_describes_the_pictures_as_shown(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == COUNT
    for index, row in enumerate(rows):
        scene = numbered(7, index, (40, 40))
        image = ImageOps.exif_transpose(Image.open(folder / row["image"]))
        assert row["image"].split("/")[:2] == [row["split"], row["label"]]
        assert row["label"] == scene.label and row["caption"] == scene.caption
        assert row["boxes"] == scene.boxes.tolist() and row["box_labels"] == scene.box_labels
        assert np.array_equal(np.asarray(Image.open(folder / row["mask"])), scene.mask)
        assert image.size == scene.mask.shape[::-1]
        shown = np.asarray(image.convert("L"), np.float32)
        drawn = np.asarray(Image.fromarray(scene.image).convert("L"), np.float32)
        assert np.abs(shown - drawn).mean() < 10  # JPEG's loss; a picture turned or swapped is off by far more


def test_a_few_files_are_of_other_kinds(folder: Path) -> None:
    images = [Image.open(path) for path in _photographs(folder) if "spoiled" not in path.name]
    kinds = [(image.format, image.mode) for image in images]
    assert kinds.count(("PNG", "L")) == kinds.count(("PNG", "RGBA")) == kinds.count(("PNG", "RGB")) == 1
    assert [image.getexif().get(0x0112) for image in images].count(6) == 1
    assert len({image.size for image in images}) > COUNT / 2


def test_a_longer_data_set_begins_with_the_shorter_one(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, 5, 7, (40, 40), spoiled=0)
    files = _photographs(tmp_path)
    assert len(files) == 5
    for path in files:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
    assert not (tmp_path / "masks").exists() and not (tmp_path / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--classes", "dog"], "sphere"), (["--size", "4"], "--size"), (["--count", "0"], "--count")],
)
def test_bad_arguments_exit_with_two_and_a_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_command_line_writes_a_folder(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--count", "3", "--size", "24", "--spoiled", "1"]) == 0
    assert len(_photographs(tmp_path)) == 4
