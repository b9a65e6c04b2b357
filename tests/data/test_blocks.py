"""Several microbatches in a block: each once, to its own worker, in order, and as it was."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsto.data.blocks import BLOCK_BYTES, LEAST_ROUNDS, MOST, Deal, closed, opened


@given(st.integers(1, 5), st.integers(0, 7), st.integers(1, 400), st.integers(0, 2 * BLOCK_BYTES), st.integers(1, 3))
def test_every_worker_gets_its_microbatches_once_and_in_order(world, start, each, size, share):
    deal = Deal.of(start * world, (start + each) * world, world, size, share)
    assert 1 <= deal.together <= MOST
    blocks = [deal.numbers(block) for block in range(len(deal))]
    assert all(0 < len(block) <= deal.together for block in blocks) and len(blocks) % world == 0
    for rank in range(world):
        got = [g for block in blocks[rank::world] for g in block]
        assert got == list(range(start * world + rank, (start + each) * world, world))
    assert {len(block) for block in blocks[:world]} == {1}


def test_small_microbatches_share_a_block_and_large_or_few_ones_do_not():
    many = 10 * LEAST_ROUNDS * MOST
    assert Deal.of(0, many, 1, 64 * 224 * 224 * 3).together == 5
    assert Deal.of(0, many, 1, 1000).together == MOST
    assert Deal.of(0, many, 1, BLOCK_BYTES + 1).together == Deal.of(0, many, 1, 0).together == 1
    assert Deal.of(0, LEAST_ROUNDS, 1, 1000).together == 1
    assert Deal.of(0, 4 * LEAST_ROUNDS, 2, 1000).together == 2
    assert Deal.of(0, 4 * LEAST_ROUNDS, 1, 1000, share=2).together == 2
    assert [Deal.of(0, many, 1, 1000, near=near).together for near in (0, 3, 10**9)] == [1, 3, MOST]
    assert [Deal.of(0, many, 1, 1000, store=64 * each).together for each in (10, 3000, 10**9)] == [1, 3, MOST]


def test_arrays_come_out_as_they_went_in_without_a_copy():
    batch = {
        "image": np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "valid": np.array([True, False]),
        "row_id": np.array([5, -1]),
        "none": np.zeros((0, 4), np.float16),
        "one": np.float64(0.5),
        "text": np.array(["a", "bc"]),
    }
    row = closed([(7, batch), (9, {"image": batch["image"][:1]})])
    assert row.num_rows == 1 and set(row.schema.types) == {pa.string(), pa.large_binary()}
    (first, got), (second, small) = opened(row)
    assert (first, second) == (7, 9) and list(got) == list(batch)
    for name, value in batch.items():
        value = np.asarray(value)
        assert got[name].dtype == value.dtype and got[name].shape == value.shape and (got[name] == value).all()
    assert np.shares_memory(got["image"], batch["image"])
    assert small["image"].shape == (1, 3, 3, 3)


def test_python_objects_are_refused_by_name():
    with pytest.raises(TypeError, match="'boxes' as Python objects"):
        closed([(0, {"boxes": np.array([[1], [1, 2]], object)})])
