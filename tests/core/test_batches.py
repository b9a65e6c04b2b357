"""Large arrays of samples that lie side by side from the start, and what `stack` makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from mapsto.core.batches import LARGE_BYTES, Together, stack

SIDE = 160
assert 3 * SIDE**2 >= LARGE_BYTES


def samples(count: int, side: int = SIDE, seed: int = 0) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    return [
        {"image": rng.integers(0, 256, (side, side, 3)).astype(np.uint8), "label": k, "boxes": rng.random((2, 4))}
        for k in range(count)
    ]


@pytest.mark.parametrize("side", [8, SIDE])
def test_the_batch_is_the_same_as_of_samples_apart(side: int) -> None:
    together = Together(5)
    expected = stack(samples(5, side), ("boxes",))
    found = stack([together.put(k, each) for k, each in enumerate(samples(5, side))], ("boxes",))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_large_arrays_are_not_copied_again() -> None:
    together = Together(3)
    put = [together.put(k, each) for k, each in enumerate(samples(3))]
    image = stack(put)["image"]
    assert all(np.shares_memory(image, sample["image"]) for sample in put)
    assert not np.shares_memory(stack(samples(3))["image"], put[0]["image"])


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1], [0, 0, 1], [0, 2, 1], [2, 1, 0]])
def test_a_collate_that_takes_others_or_another_order_gets_what_it_asks_for(order: list[int]) -> None:
    together = Together(3)
    put = [together.put(k, each) for k, each in enumerate(samples(3))]
    plain = samples(3)
    np.testing.assert_array_equal(stack([put[k] for k in order])["image"], np.stack([plain[k]["image"] for k in order]))


def test_arrays_of_other_shapes_are_left_where_they_are() -> None:
    first, other, third = samples(1)[0], samples(1, SIDE + 8, 1)[0], samples(1, SIDE, 2)[0]
    images = [np.array(each["image"]) for each in (first, other, third)]
    together = Together(3)
    put = [together.put(k, each) for k, each in enumerate((first, other, third))]
    for sample, image in zip(put, images, strict=True):
        np.testing.assert_array_equal(sample["image"], image)
    assert put[2]["image"] is third["image"]


def test_views_that_are_no_whole_rows_are_stacked_as_they_are() -> None:
    home = np.arange(3 * SIDE * SIDE * 3, dtype=np.uint8).reshape(3, SIDE, SIDE, 3)
    for views in (
        [row.transpose(1, 0, 2) for row in home],
        [row[:, ::-1] for row in home],
        [row[:100] for row in home],
        [home[0], home[1].transpose(1, 0, 2), home[2]],
        [row.view(np.int8) for row in home],
    ):
        batch = stack([{"image": view} for view in views])["image"]
        np.testing.assert_array_equal(batch, np.stack(views))
        assert batch.dtype == views[0].dtype
    with pytest.raises(ValueError, match="same shape"):
        stack([{"image": home[0]}, {"image": home[1][:100]}, {"image": home[2]}])
