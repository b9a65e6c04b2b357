"""The order of a review, and the scores that it comes from."""

from __future__ import annotations

import pytest

from mapsto.core.errors import UserError
from mapsto.curate.annotation.queue import queue, read_scores


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
