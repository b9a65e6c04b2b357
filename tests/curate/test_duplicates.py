"""Duplicates: copies are found through what copies go through, other pictures are not, and codes do what they say."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.codecs import decode, encode
from mapsto.curate import duplicates
from mapsto.curate.agreement import SURE, agreement, turned_agreement
from mapsto.curate.duplicates import SAME, groups, near_pairs
from mapsto.curate.fingerprints import (
    BITS,
    SIDE,
    THUMB_BYTES,
    VIEWS,
    WHOLE,
    colours,
    greys,
    halved,
    likeness,
    packed,
    rises,
    thumbnail,
)
from mapsto.data.scenes import numbered


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [numbered(3, k, (160, 200)).image for k in range(40)]


def copies(image: np.ndarray) -> dict[str, np.ndarray]:
    height, width = image.shape[:2]
    captioned = image.copy()
    captioned[int(height * 0.88) :] = 0
    cv2.putText(captioned, "a caption", (8, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255))
    return {
        "resized": cv2.resize(image, (width * 3 // 5, height * 3 // 5), interpolation=cv2.INTER_AREA),
        "recompressed": decode(encode(image, "jpeg", 30)),
        "cropped": image[2 : 2 + int(height * 0.95), 5 : 5 + int(width * 0.95)],
        "mirrored": image[:, ::-1],
        "brightened": np.clip(image * 1.3 + 15.0, 0, 255).astype(np.uint8),
        "captioned": captioned,
    }


@pytest.mark.parametrize("kind", ["resized", "recompressed", "cropped", "mirrored", "brightened", "captioned"])
def test_copies_are_found_and_only_they(photographs, kind):
    thumbs = np.stack(
        [thumbnail(np.ascontiguousarray(i)) for i in [*photographs, *(copies(p)[kind] for p in photographs)]]
    )
    pairs = near_pairs(thumbs)
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    truth = {(k, k + len(photographs)) for k in range(len(photographs))}
    assert found <= truth, f"not copies: {found - truth}"
    assert len(found) >= 38, f"missed: {truth - found}"
    assert pairs.mirrored.mean() > 0.9 if kind == "mirrored" else not pairs.mirrored.any()  # some look alike both ways


def test_the_small_picture_is_the_image_in_grey_and_in_colour():
    image = cv2.resize(numbered(3, 7, (320, 320)).image, (320, 320), interpolation=cv2.INTER_AREA)  # drawn ±25 %
    thumb = thumbnail(image)
    linear = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert thumb.shape == (THUMB_BYTES,) and np.abs(greys(thumb).astype(int) - linear).mean() < 1
    red, green, blue = image.reshape(10, 32, 10, 32, 3).mean((1, 3)).transpose(2, 0, 1)  # ITU-T T.871
    cb = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    np.testing.assert_allclose(colours(thumb), np.stack([cr, cb], -1), atol=2)


def test_the_same_shapes_in_other_colours_are_no_copy(photographs):
    for image in photographs[:10]:
        own = thumbnail(image)
        assert agreement(own, thumbnail(np.ascontiguousarray(image[:, :, [2, 0, 1]]))) < SAME
        brighter = np.clip(image * 1.25 + 10.0, 0, 255).astype(np.uint8)
        assert agreement(own, thumbnail(brighter)) >= SAME


def test_pictures_laid_out_alike_are_no_copies():
    """Garments of one cut on one background: the outline is the same, folds and print are not."""

    def garment(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        image = np.full((256, 256, 3), (200, 190, 180), np.uint8)
        cv2.rectangle(image, (60, 50), (196, 220), (90, 60, 120), -1)
        cv2.rectangle(image, (20, 50), (236, 100), (90, 60, 120), -1)
        folds = cv2.resize(rng.normal(0, 25, (24, 24)), (256, 256), interpolation=cv2.INTER_CUBIC)[..., None]
        return np.clip(image + folds, 0, 255).astype(np.uint8)

    thumbs = np.stack([thumbnail(garment(seed)) for seed in range(30)])
    assert len(near_pairs(thumbs)) == 0
    copy = np.clip(garment(4)[:, ::-1] * 1.2 + 5, 0, 255).astype(np.uint8)
    pairs = near_pairs(np.concatenate([thumbs, thumbnail(copy)[None]]))
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.mirrored.tolist()) == ([4], [30], [True])


def test_the_chunk_does_not_matter(photographs, monkeypatch):
    thumbs = np.stack([thumbnail(np.ascontiguousarray(i)) for p in photographs[:12] for i in (p, copies(p)["cropped"])])
    whole = near_pairs(thumbs)
    monkeypatch.setattr(duplicates, "CHUNK", 5)
    monkeypatch.setattr(duplicates, "LOOKED_UP", 5)
    parts = near_pairs(thumbs)
    assert len(whole) >= 11 and (whole.first == parts.first).all() and (whole.second == parts.second).all()


def test_some_rows_of_a_larger_file_are_looked_at_where_they_lie(photographs, tmp_path):
    """What is handed in is never copied whole: the pictures of a million images take 4 GB."""
    thumbs = np.stack([thumbnail(np.ascontiguousarray(i)) for p in photographs[:8] for i in (p, copies(p)["cropped"])])
    rows = np.array([1, 2, 3, 6, 7, 9, 12, 13])
    mapped = np.memmap(tmp_path / "thumbs", np.uint8, "w+", shape=(20_000, THUMB_BYTES))
    mapped[: len(thumbs)] = thumbs
    tracemalloc.start()
    pairs, alone = near_pairs(mapped, rows=rows), near_pairs(np.ascontiguousarray(thumbs[rows]))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(1, 2), (3, 4), (6, 7)]
    for name in ("first", "second", "score", "mirrored"):
        np.testing.assert_array_equal(getattr(pairs, name), getattr(alone, name))
    assert held < mapped.nbytes / 4


def test_many_frames_of_one_scene_are_one_cluster_of_few_pairs(photographs, monkeypatch):
    """Three scenes of a still camera; of each a few frames lie in another split, and every frame is paired with one of them."""
    monkeypatch.setattr(duplicates, "MOST", 5)
    rng, count = np.random.default_rng(5), 108
    noise = rng.normal(0, 6, (count, *photographs[0].shape))
    frames = [np.clip(photographs[k % 3][:120, :150] + noise[k, :120, :150], 0, 255).astype(np.uint8) for k in range(count)]  # fmt: skip
    kinds = (np.arange(count) % 24 < 3).astype(np.uint8)
    pairs = near_pairs(np.stack([thumbnail(frame) for frame in frames]), kinds=kinds)
    cluster = groups(count, pairs.first, pairs.second).reshape(-1, 3)
    assert (cluster == cluster[0]).all() and len(set(cluster[0])) == 3
    assert len(pairs) <= count * 5 * 2 + count < 0.7 * 3 * 36 * 35 / 2
    across = kinds[pairs.first] != kinds[pairs.second]
    assert set(pairs.first[across]) | set(pairs.second[across]) == set(range(count))


def test_thresholds_above_what_is_sure_are_reached(photographs):
    """A picture that is nearly its own mirror image agrees with it to 0.95 and more, and mirrored to 1."""
    image = photographs[1].astype(float)
    even = (0.55 * image + 0.45 * image[:, ::-1]).clip(0, 255).astype(np.uint8)
    one, other = thumbnail(even), thumbnail(np.ascontiguousarray(even[:, ::-1]))
    assert SURE < agreement(one, other) < 0.99 < agreement(one, other, mirrored=True)
    assert turned_agreement(one, other) < 0.99 <= turned_agreement(one, other, enough=0.99)
    assert near_pairs(np.stack([one, other]), (SAME, 0.99)).score.tolist() == pytest.approx([1], abs=1e-3)


def test_pairs_of_little_agreement_take_no_place_of_those_that_agree_more(photographs, monkeypatch):
    """24 frames alike to 0.85, and two pairs across the splits to 0.97: they are told, and the pairs of 0.85 are few all the same."""
    monkeypatch.setattr(duplicates, "MOST", 2)
    rng, count = np.random.default_rng(5), 24
    noise = rng.normal(0, 3, (count, *photographs[0].shape))
    thumbs = np.stack([thumbnail(np.clip(photographs[0] + each, 0, 255).astype(np.uint8)) for each in noise])
    number, close = {thumb.tobytes(): k for k, thumb in enumerate(thumbs)}, {(4, 23), (9, 20)}

    def agreed(one: np.ndarray, other: np.ndarray, mirrored: bool, floor: float, enough: float) -> float:
        return 0.97 if (number[one.tobytes()], number[other.tobytes()]) in close else 0.85

    monkeypatch.setattr(duplicates, "agreement", agreed)
    kinds = (np.arange(count) >= 12).astype(np.uint8)
    pairs = near_pairs(thumbs, (0.95, 0.8), kinds=kinds)
    sure = pairs.at_least(0.95)
    assert set(zip(sure.first.tolist(), sure.second.tolist(), strict=True)) == close
    assert count - 1 <= len(pairs) <= count * 2 * 2 + count + len(close)
    assert len(set(groups(count, pairs.first, pairs.second))) == 1


def test_a_pair_that_joins_two_full_clusters_is_looked_at():
    bound = duplicates._Bound(np.zeros(100, np.uint8))
    for low in (0, 50):
        for k in range(low + 1, low + duplicates.MOST + 1):
            for other in range(low, k):
                assert not bound.reached(other, k)
                bound.count(other, k)
    assert bound.reached(0, 5) and bound.reached(50, 55)
    assert not bound.reached(0, 50)  # two clusters yet
    bound.count(0, 50)
    assert bound.reached(1, 51) and not bound.reached(0, 99)


def test_a_full_bucket_is_counted(monkeypatch):
    monkeypatch.setattr(duplicates, "FULLEST", 3)
    thumbs = np.random.default_rng(0).integers(0, 256, (1, THUMB_BYTES), np.uint8).repeat(9, 0)
    assert near_pairs(thumbs).passed_over > 0


def test_flat_pictures_are_no_copies_of_each_other():
    flat = np.full(THUMB_BYTES, 90, np.uint8)
    assert agreement(flat, flat + 20) == 0.0
    assert len(near_pairs(np.stack([flat, flat + 20]))) == 0


def test_codes_are_the_rises_of_a_9x9_grid_in_some_order():
    thumb = np.random.default_rng(1).integers(0, 256, THUMB_BYTES, np.uint8)
    half = greys(thumb).reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)).round()
    grid = cv2.resize(half.astype(np.float32), (9, 9), interpolation=cv2.INTER_AREA)
    steps = np.concatenate([(grid[:-1, 1:] - grid[:-1, :-1]).ravel(), (grid[1:, :-1] - grid[:-1, :-1]).ravel()])
    own = rises(halved(thumb[None]))
    assert abs((steps > 0).sum() - (own > 0).sum()) <= 1  # halves are rounded this way or that
    evened = np.clip(steps / np.median(np.abs(steps)) * 60, -120, 120)
    np.testing.assert_allclose(np.sort(own[0]), np.sort(evened), atol=4)
    assert VIEWS[0] == WHOLE and not WHOLE.mirrored


def test_likeness_is_the_share_of_the_rises_that_two_pictures_have_in_common():
    a = np.zeros((1, BITS), np.int8)
    a[0, :2] = 100, -50
    b, opposite, half = a.copy(), -a, a // 2
    assert likeness(a, b) == 1 and likeness(a, opposite) == -1 and likeness(a, half) == 0.5
    one = b.copy()
    one[0, 1] = 50  # one of them differs
    assert likeness(a, one)[0] == np.float32(50 / 150)
    flat = np.zeros((1, BITS), np.int8)
    assert likeness(flat, flat) == 0


@pytest.mark.parametrize("how", ["pale and captioned", "a third as bright"])
def test_copies_of_weak_or_strong_contrast_pass_the_sieve(photographs, how):
    first, second = [], []
    for image in photographs[:24]:
        if how == "a third as bright":
            first.append(image)
            second.append((image * 0.33).astype(np.uint8))
        else:
            pale = np.clip(image * 0.15 + 190, 0, 255).astype(np.uint8)
            first.append(pale)
            second.append(pale.copy())
            second[-1][int(len(pale) * 0.88) :] = 0
    thumbs = np.stack([thumbnail(np.ascontiguousarray(image)) for image in [*first, *second]])
    pairs = near_pairs(thumbs)
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    agreed = {(k, k + 24) for k in range(24) if agreement(thumbs[k], thumbs[k + 24]) >= SAME}
    assert len(agreed) >= 6 and agreed <= found


def test_mirrored_variants_are_those_of_the_mirror_image():
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    small, turned = (halved(thumbnail(np.ascontiguousarray(i))[None]) for i in (image, image[:, ::-1]))
    assert len(VIEWS) == 12 and sum(view.mirrored for view in VIEWS) == 6
    for plain, mirrored in zip(VIEWS[:6], VIEWS[6:], strict=True):
        assert (rises(small, mirrored) == rises(turned, plain)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_packed_codes_differ_in_as_many_bits(seed):
    bits = np.random.default_rng(seed).random((2, BITS)) < 0.5
    a, b = packed(bits)
    assert np.bitwise_count(a ^ b).sum() == (bits[0] != bits[1]).sum()


def test_groups_are_connected_components():
    group = groups(6, np.array([0, 1, 4]), np.array([1, 2, 5]))
    assert group[0] == group[1] == group[2] and group[4] == group[5]
    assert len({group[0], group[3], group[4]}) == 3
