"""Files that ingest refused, in the terms of the rules: they are no rows, and lie in its quarantine whatever a recipe says."""

from __future__ import annotations

import re
from collections.abc import Mapping

REFUSED: Mapping[str, str] = {
    "too_large": "more pixels or bytes than ingest takes: a decompression bomb, or a mistake",
    "truncated": "begins as an image and ends before it does",
    "min_side": "a side shorter than `min_side`",
    "mask_size": "its mask is of another size",
    "annotations": "annotations that do not fit, are not there or cannot be taken: boxes, labels, a value, a text or a mask",
    "unreadable": "no image that can be read",
}
"""Names of the findings, and what each is about."""

_REASONS = (
    ("too_large", r"too large|over the limit"),
    ("mask_size", r"mask and image differ in size"),
    ("min_side", r"smaller than min_side"),
    ("annotations", r"^(labels?|value|box\w*|crowd|difficult|area|segments|keypoints|mask|RLE|annotations)\b"),
    ("annotations", r"^(its|an?|no|\d+) (annotation|label file|text|json|masks?|segmentation)\b|^several images have this name|ground truth"),
    ("truncated", r"truncat|ends before|premature|unexpected end|broken data stream|incomplete"),
)  # fmt: skip


def kind_of(reason: str) -> str:
    """Which of `REFUSED` a line of an ingest's quarantine tells."""
    return next((name for name, words in _REASONS if re.search(words, reason, re.IGNORECASE)), "unreadable")
