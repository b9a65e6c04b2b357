"""Label Studio and CVAT: there and back, against their documented forms; broken answers. No Ray."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.curate.annotation import brush, cvat, label_studio
from mapsto.curate.annotation.corrections import correction
from mapsto.curate.annotation.marks import mask_id, mask_label, named, painted, shape, task
from mapsto.curate.annotation.queue import queue, read_scores

CLASSES = ("cat", "dog", 'q"<&>')
HEIGHT, WIDTH = 30, 41
COLUMNS = ("label", "boxes", "box_labels", "segments", "mask")
SHA = "ab12cd34" + "0" * 56


def documented(stream: list[int]) -> list[int]:
    """The values of a rle-pack stream, bit by bit as its description has it: an implementation of its own."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    place = 0

    def take(n: int) -> int:
        nonlocal place
        place += n
        return int(bits[place - n : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        repeat, length = take(1), take(sizes[take(2)]) + 1
        out += [take(word)] * length if repeat else [take(word) for _ in range(length)]
    return out


masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 40)))


@settings(max_examples=80, deadline=None)
@given(masks)
def test_brush_masks_there_and_back(pixels):
    stream = brush.encode(pixels)
    assert all(0 <= byte <= 255 for byte in stream)
    assert documented(stream) == np.repeat(pixels.ravel() * 255, 4).tolist()
    np.testing.assert_array_equal(brush.decode(stream, *pixels.shape), pixels)


def test_a_brush_mask_larger_than_the_longest_run():
    pixels = np.zeros((300, 400), bool)
    pixels[3:250, 7:] = True
    np.testing.assert_array_equal(brush.decode(brush.encode(pixels), 300, 400), pixels)
    everything = np.ones((300, 400), bool)
    assert documented(brush.encode(everything)) == [255] * 480_000


@settings(max_examples=40, deadline=None)
@given(masks, st.randoms(use_true_random=False))
def test_brush_streams_as_the_tool_itself_writes_them(pixels, random):
    """With other sizes and blocks of single values, and half-transparent edges."""
    values = [int(v) for p in pixels.ravel() for v in (9, 9, 9, random.randint(1, 255) if p else 0)]
    sizes = (4, 6, 2, 9)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    place = 0
    while place < len(values):
        which = random.randrange(4)
        run = next(
            (n for n in range(1, len(values) - place) if values[place + n] != values[place]), len(values) - place
        )
        length = min(run if run > 1 else random.randint(1, 5), len(values) - place, 1 << sizes[which])
        part = values[place : place + length]
        same = len(set(part)) == 1
        bits += f"{int(same)}{which:02b}{length - 1:0{sizes[which]}b}" + "".join(
            f"{v:08b}" for v in (part[:1] if same else part)
        )
        place += length
    bits += "0" * (-len(bits) % 8)
    stream = [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]
    assert documented(stream) == values
    np.testing.assert_array_equal(brush.decode(stream, *pixels.shape), pixels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_noise_is_no_brush_mask_and_no_crash(noise):
    head = list((4 * 5 * 4).to_bytes(4))
    for stream in (noise, head + noise):
        try:
            assert brush.decode(stream, 5, 4).shape == (5, 4)
        except UserError as error:
            assert "brush mask" in str(error)  # noqa: PT017


@pytest.mark.parametrize("stream", [[256], [-1], ["a"], None, 5])
def test_what_is_no_list_of_bytes_says_so(stream):
    with pytest.raises(UserError, match=r"list of bytes, 0 to 255|ends too early|of \d+ values"):
        brush.decode(stream, 2, 2)


def row(rng: np.random.Generator, *, semantic: bool = True, **more):
    """A row with everything: boxes at fractions of pixels, a polygon of two parts, a RLE."""
    corners = np.sort(rng.uniform(0, 1, (4, 2, 2)), axis=1) * [WIDTH, HEIGHT]
    boxes = corners.reshape(4, 4).astype(np.float32).tolist()
    pixels = rng.random((HEIGHT, WIDTH)) < 0.3
    runs = {
        "size": [HEIGHT, WIDTH],
        "counts": np.diff([0, *np.flatnonzero(np.diff(pixels.T.ravel())) + 1, pixels.size]).tolist(),
    }
    if pixels[0, 0]:
        runs["counts"] = [0, *runs["counts"]]
    segments = [
        "[]",
        json.dumps([[1.25, 2, 9, 2, 9, 7.5]]),
        json.dumps([[1, 1, 5, 1, 5, 5], [20, 9, 30, 9, 30, 20.125]]),
        json.dumps(runs),
    ]
    out = {
        "row_id": 12, "content_sha256": SHA, "width": WIDTH, "height": HEIGHT, "label": 2, "boxes": boxes,
        "box_labels": [0, 1, 2, 0], "segments": segments,
    }  # fmt: skip
    if semantic:
        ids = rng.choice([0, 1, 7, 255], (HEIGHT, WIDTH)).astype(np.uint8)
        out["mask"] = encode(ids, "png")
    return out | more


def studio(tasks: list[dict], change=lambda result: result) -> bytes:
    """What Label Studio exports when a person has taken the predictions over, changed or not."""
    return json.dumps(
        [
            {
                "id": k,
                "data": each["data"],
                "annotations": [{"id": k, "result": change(each["predictions"][0]["result"])}],
            }
            for k, each in enumerate(tasks, 1)
        ]
    ).encode()


def cvat_file(each, count: int = 1) -> bytes:
    return "".join(
        cvat.whole(cvat.labels(CLASSES, COLUMNS, [1, 7, 255]), [cvat.write(each, k) for k in range(count)])
    ).encode()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tool", ["label-studio", "cvat", "cvat, no mask"])
def test_there_and_back_nothing_has_changed(tool, seed):
    given_row = row(np.random.default_rng(seed), semantic="no" not in tool)
    columns = COLUMNS if "no" not in tool else COLUMNS[:-1]
    each = task(given_row, CLASSES, 3, ".jpg", 0.5)
    assert each.name == "000003-12-ab12cd34.jpg" and named(f"x/images/{each.name}") == (12, "ab12cd34")
    if tool == "label-studio":
        reviewed = label_studio.read(studio([label_studio.write(each)]), "f.json")
    else:
        reviewed = cvat.read(cvat_file(each), "f.xml", semantic="mask" in columns)
    answer = reviewed.answers[0]
    assert (answer.row_id, answer.content, answer.marks.label) == (12, "ab12cd34", CLASSES[2])
    assert not reviewed.passed_over and answer.marks.box_labels == ("cat", "dog", CLASSES[2], "cat")
    whole = [k for k, outline in enumerate(answer.marks.shapes) if outline is None]
    assert len(whole) == {"label-studio": 4, "cvat": 2, "cvat, no mask": 1}[tool]
    np.testing.assert_allclose(answer.marks.boxes[whole], np.array(given_row["boxes"])[whole], rtol=1e-6, atol=1e-12)
    if "mask" in columns:
        np.testing.assert_array_equal(answer.marks.mask, each.marks.mask)
    assert correction(answer, given_row, CLASSES, columns, counter()) is None


def counter():
    from collections import Counter

    return Counter()


def test_label_studio_has_percent_and_its_interface_every_name():
    given_row = row(np.random.default_rng(0), boxes=[[4.1, 3, 20.5, 18]], box_labels=[1], segments=["[]"])
    written = label_studio.write(task(given_row, CLASSES, 0, ".png"), ("sky", "road"))
    box = next(r for r in written["predictions"][0]["result"] if r["type"] == "rectanglelabels")
    expected = {"x": 10, "y": 10, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}
    assert {k: pytest.approx(v) if isinstance(v, int) else v for k, v in expected.items()} == box["value"]
    assert (box["original_width"], box["original_height"]) == (WIDTH, HEIGHT)
    assert written["data"]["image"] == "/data/local-files/?d=images/000000-12-ab12cd34.png"
    root = ET.fromstring(label_studio.config(CLASSES, COLUMNS, [1, 7, 255], ("sky", "road")))
    assert [e.get("value") for e in root.find("Choices")] == list(CLASSES)
    assert [e.get("value") for e in root.find("BrushLabels")] == ["1 road", "7", "255"]
    used = {r["from_name"] for r in written["predictions"][0]["result"]}
    assert used == {e.get("name") for e in root if e.tag != "Image"}


def test_cvat_has_what_its_description_says():
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[2:4, 5:8] = [[0, 7, 7], [7, 0, 7]]
    given_row = row(np.random.default_rng(0), mask=encode(pixels, "png"))
    root = ET.fromstring(cvat_file(task(given_row, CLASSES, 0, ".jpg")))
    image = root.find("image")
    assert image.attrib == {"id": "0", "name": "000000-12-ab12cd34.jpg", "width": "41", "height": "30"}
    mask = image.find("mask")
    place = {k: mask.get(k) for k in ("label", "left", "top", "width", "height", "rle")}
    assert place == {"label": "7", "left": "5", "top": "2", "width": "3", "height": "2", "rle": "1, 3, 1, 1"}
    assert image.find("tag").get("label") == CLASSES[2]
    groups = [p.get("group_id") for p in image.findall("polygon")]
    assert groups == [None, "3", "3"] and image.find("polygon").get("points") == "1.25,2.0;9.0,2.0;9.0,7.5"
    assert [e.text for e in root.findall("meta/task/labels/label/name")] == [*CLASSES, "1", "7", "255"]


def edited(change):
    given_row = row(np.random.default_rng(1))
    data = studio([label_studio.write(task(given_row, CLASSES, 0, ".jpg"))], change)
    answer = label_studio.read(data, "f.json").answers[0]
    dropped = counter()
    return given_row, correction(answer, given_row, CLASSES, COLUMNS, dropped), dropped


def test_a_changed_label_alone_is_a_label():
    def change(results):
        results[0]["value"]["choices"] = ["cat"]
        return results

    _, entry, _ = edited(change)
    assert entry == {"row_id": 12, "content_sha256": SHA, "changed": ["label"], "label": "cat", "was": CLASSES[2]}
    _, entry, _ = edited(lambda results: results[1:])
    assert (entry["label"], entry["was"]) == (None, CLASSES[2])


def test_boxes_added_moved_relabelled_and_removed_say_where_they_come_from():
    def change(results):
        boxes = [r for r in results if r["type"] == "rectanglelabels"]
        others = [r for r in results if r["type"] != "rectanglelabels"]
        boxes[0]["value"]["rectanglelabels"] = ["dog"]
        boxes[1]["value"]["width"] *= 1.05
        new = json.loads(json.dumps(boxes[3]))
        new["value"] |= {"x": 0, "y": 0, "width": 1.5, "height": 1.5, "rectanglelabels": ["cat"]}
        outside = json.loads(json.dumps(new))
        outside["value"] |= {"x": 101}
        return [*others, boxes[1], boxes[0], new, outside, boxes[3]]

    given_row, entry, dropped = edited(change)
    assert entry["changed"] == ["boxes"] and entry["origin"] == [1, 0, None, 3]
    assert entry["box_labels"] == ["dog", "dog", "cat", "cat"] and dropped == {"boxes without area inside the image": 1}
    assert entry["boxes"][1] == given_row["boxes"][0] and entry["boxes"][3] == given_row["boxes"][3]
    x0, y0, x1, y1 = given_row["boxes"][1]
    np.testing.assert_allclose(entry["boxes"][0], [x0, y0, min(x0 + (x1 - x0) * 1.05, WIDTH), y1], rtol=1e-6)
    assert entry["segments"] == [None, given_row["segments"][0], None, given_row["segments"][3]]


def test_a_repainted_mask_comes_bit_by_bit():
    import base64

    from mapsto.core.codecs import decode_mask

    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:9, 3:20] = 3

    def change(results):
        kept = [r for r in results if r["type"] != "brushlabels"]
        value = {"format": "rle", "rle": brush.encode(ids == 3), "brushlabels": ["3 new name"]}
        return [*kept, {"id": "x", "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": value}]

    _, entry, _ = edited(change)
    assert entry["changed"] == ["mask"]
    np.testing.assert_array_equal(decode_mask(base64.b64decode(entry["mask_png"])), ids)


def test_cvats_two_decimals_are_no_change():
    given_row = row(np.random.default_rng(2), semantic=False)
    root = ET.fromstring(cvat_file(task(given_row, CLASSES, 0, ".jpg")))
    for box in root.iter("box"):
        for key in ("xtl", "ytl", "xbr", "ybr"):
            box.set(key, f"{float(box.get(key)):.2f}")
    for polygon in root.iter("polygon"):
        points = [pair.split(",") for pair in polygon.get("points").split(";")]
        polygon.set("points", ";".join(f"{float(x):.2f},{float(y):.2f}" for x, y in points))
    answer = cvat.read(ET.tostring(root), "f.xml", semantic=False).answers[0]
    assert correction(answer, given_row, CLASSES, COLUMNS, counter()) is None
    root.find("image/polygon").set("points", "1.25,2;9,2;9,9.5")
    answer = cvat.read(ET.tostring(root), "f.xml", semantic=False).answers[0]
    entry = correction(answer, given_row, CLASSES, COLUMNS, counter())
    assert entry["changed"] == ["boxes"] and entry["boxes"][1] == [1.25, 2, 9, 9.5] and len(entry["boxes"]) == 4
    assert json.loads(entry["segments"][1]) == [[1.25, 2, 9, 2, 9, 9.5]]
    assert entry["segments"][2:] == given_row["segments"][2:]


def one(**change) -> bytes:
    data = {"row_id": 12, "content": "ab12cd34", "width": WIDTH, "height": HEIGHT}
    result = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["cat"]}}
    where = change.pop("where", "value")
    (result if where == "result" else result["value"] if where == "value" else data).update(change)
    return json.dumps([{"data": data, "annotations": [{"id": 1, "result": [result]}]}]).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "f.json: not JSON"),
        (b"{}", "not a list of tasks"),
        (b"[3]", "task 1: not as Label Studio's export"),
        (b'[{"id": 1, "image": "a.jpg", "choice": "cat"}]', "not JSON-MIN"),
        (b'[{"data": {"image": "a.jpg"}, "annotations": []}]', "the image 'a.jpg' is none of a review's"),
        (one(rotation=30), "task 1: a rotated box"),
        (one(image_rotation=90, where="result"), "a rotated box or image"),
        (one(original_width=7, where="result"), "its image is 7x30 there, 41x30 in the data set"),
        (one(rectanglelabels=["cat", "dog"]), "a region of 2 classes"),
        (one(x="a"), "task 1: not as"),
        (one(x=float("nan")), "no finite number"),
        (one(type="choices", value={"choices": ["a", "b"]}, where="result"), "2 classes chosen"),
        (one(type="brushlabels", value={"rle": [0, 0], "brushlabels": ["1"]}, where="result"), "ends too early"),
        (one(type="brushlabels", value={"rle": brush.encode(np.ones((HEIGHT, WIDTH), bool)), "brushlabels": ["road"]}, where="result"),
         "'road' is no mask's label"),
    ],
)  # fmt: skip
def test_broken_label_studio_files_say_where(data, says):
    with pytest.raises(UserError, match=says) as told:
        label_studio.read(data, "f.json")
    assert "\n" not in str(told.value)


def test_tasks_without_an_answer_and_other_regions_are_counted():
    tasks = json.loads(one()) + json.loads(one()) + json.loads(one())
    tasks[0]["annotations"] = []
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"][0]["result"].append({"type": "ellipselabels", "value": {}})
    newer = json.loads(json.dumps(tasks[2]["annotations"][0])) | {"updated_at": "2026-01-02"}
    newer["result"][0]["value"]["rectanglelabels"] = ["dog"]
    tasks[2]["annotations"].insert(0, newer)
    found = label_studio.read(json.dumps(tasks).encode(), "f")
    assert found.answers[0].marks.box_labels == ("dog",) and len(found.answers) == 1
    assert found.passed_over == {
        "tasks without an annotation": 1, "tasks skipped by the person": 1, "regions of the kind ellipselabels": 1,
        "older annotations of a task that has several": 1,
    }  # fmt: skip


def image(inner: str, name: str = "000000-12-ab12cd34.jpg") -> bytes:
    return f'<annotations><image id="0" name="{name}" width="41" height="30">{inner}</image></annotations>'.encode()


BOMB = b'<!DOCTYPE a [<!ENTITY x "aaaa"><!ENTITY y "&x;&x;">]><annotations><image name="&y;"/></annotations>'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<a", "f.xml: not XML"),
        (BOMB, "refused .EntitiesForbidden.: it defines entities"),
        (b"<annotations><track/><image/></annotations>", "export them as 'CVAT for images 1.1'"),
        (b"<html/>", "not CVAT's annotations"),
        (image("", "cat.jpg"), "the image 'cat.jpg' is none of a review's"),
        (image('<box label="cat" rotation="3" xtl="1" ytl="1" xbr="2" ybr="2"/>'), "a rotated box"),
        (image('<box label="cat" xtl="1" ytl="1" xbr="2"/>'), "KeyError: 'ybr'"),
        (image('<box label="cat" xtl="nan" ytl="1" xbr="2" ybr="3"/>'), "no finite number"),
        (image('<tag label="cat"/><tag label="dog"/>'), "2 tags .cat, dog."),
        (image('<polygon label="cat" points="1,2;3,4"/>'), "a polygon of 2 points"),
        (image('<polygon label="cat" points="1,2;3"/>'), "not as CVAT for images 1.1 has it"),
        (image('<mask label="1" rle="2,3" left="0" top="0" width="2" height="2"/>'), "run lengths: 2 that add up to 5"),
        (image('<mask label="1" rle="2,2" left="40" top="0" width="2" height="2"/>'), "leaves the image of 41x30"),
        (image('<mask label="1" rle="4" left="0" top="0" width="2" height="2"/>'), "a mask without a pixel"),
        (image('<mask label="x" rle="0,4" left="0" top="0" width="2" height="2"/>'), "'x' is no mask's label"),
    ],
)
def test_broken_cvat_files_say_where(data, says):
    with pytest.raises(UserError, match=says) as told:
        cvat.read(data, "f.xml", semantic=True)
    assert "\n" not in str(told.value)


def test_other_shapes_are_counted_and_later_masks_cover():
    inner = (
        '<points label="cat" points="1,2"/><mask label="2" z_order="1" rle="0,4" left="0" top="0" width="2" height="2"/>'
        '<mask label="1" z_order="0" rle="0,9" left="0" top="0" width="3" height="3"/>'
    )
    found = cvat.read(image(inner), "f", semantic=True)
    assert found.passed_over == {"shapes of the kind points": 1}
    assert found.answers[0].marks.mask[:3, :3].tolist() == [[2, 2, 1], [2, 2, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"content_sha256": "f" * 64}, "row 12 is another image in this data set"),
        ({"width": 50}, "row 12: its image is 41x30 there, 50x30 in the data set"),
    ],
)
def test_answers_for_other_images_are_refused(change, says):
    answer = label_studio.read(one(), "f.json").answers[0]
    plain = {
        "row_id": 12,
        "content_sha256": SHA,
        "width": WIDTH,
        "height": HEIGHT,
        "label": 0,
        "boxes": [],
        "box_labels": [],
    }
    with pytest.raises(UserError, match=says):
        correction(answer, plain | change, CLASSES, COLUMNS, counter())


def test_an_unknown_class_is_refused_with_the_nearest():
    answer = label_studio.read(one(rectanglelabels=["dgo"]), "f.json").answers[0]
    with pytest.raises(
        UserError, match=r"f.json: task 1: row 12: class 'dgo' is none of the data set's, did you mean 'dog'\?"
    ):
        correction(answer, row(np.random.default_rng(0)), CLASSES, COLUMNS, counter())


def test_the_queue():
    scores = read_scores(
        b'{"row_id": 3, "score": 0.5}\n\n{"row_id": 1, "score": 2}\n{"row_id": 2, "score": 0.5, "why": 1}\n', "s"
    )
    assert queue(scores) == [1, 2, 3] and queue(scores, 2) == [1, 2] and queue(scores, lowest=True) == [2, 3, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "s.jsonl: no scores"), ("{", "s.jsonl:1: each line is"), ("[1]", ":1: each line is"), ('{"row_id": 1}', ":1: each line is"),
        ('{"row_id": "1", "score": 1}', "row_id '1' is no whole number"), ('{"row_id": true, "score": 1}', "no whole number"),
        ('{"row_id": 1, "score": NaN}', "score nan is no finite number"), ('{"row_id": 1, "score": "x"}', "no finite number"),
        ('{"row_id": 1, "score": 1}\n{"row_id": 1, "score": 2}', "s.jsonl:2: row 1 comes twice"), ("\xff", ":1: each line is"),
    ],
)  # fmt: skip
def test_broken_scores_say_where(text, says):
    with pytest.raises(UserError, match=says):
        read_scores(text.encode("latin-1"), "s.jsonl")


def test_labels_of_masks_and_shapes():
    assert mask_label(1, ("sky", "road")) == "1 road" and mask_label(9) == "9" and mask_id("1 road") == 1
    for wrong in ("256", "-1", "road", "", "²"):
        with pytest.raises(UserError, match="no mask's label"):
            mask_id(wrong)
    assert painted([], 2, 3).tolist() == [[0] * 3] * 2
    assert shape([], 2, 2) is None and shape({"size": [3, 3], "counts": [9]}, 2, 2) is None
    assert shape({"size": [2, 2], "counts": [1, 3]}, 2, 2).tolist() == [[False, True], [True, True]]
