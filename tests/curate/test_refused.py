"""What the reasons of an ingest's quarantine are in the terms of the rules."""

from __future__ import annotations

import pytest

from mapsto.curate.refused import REFUSED, kind_of


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("annotations and image differ in size: 32x24, 24x32 (were they made before its orientation was applied?)", "annotations"),
        ("RLE and image differ in size: 8x8, 24x32", "annotations"),
        ("boxes and crowd differ in number: 2, 1", "annotations"),
        ("box_labels: a list, with an entry for each box, not 5", "annotations"),
        ("its label file cannot be used: line 1: class 3 of 2", "annotations"),
        ("a label file of an image that is not there", "annotations"),
        ("its annotation cannot be read: unclosed token: line 1, column 0", "annotations"),
        ("no annotation: Annotations has no XML file of its name", "annotations"),
        ("an annotation of an image that JPEGImages does not have", "annotations"),
        ("annotations of an image that `images` does not list", "annotations"),
        ("several images have this name, and one annotation", "annotations"),
        ("its text cannot be read: Expecting value: line 1 column 1 (char 0)", "annotations"),
        ("its json is over 16 MB", "annotations"),
        ("no mask of its name in masks", "annotations"),
        ("2 masks of its name in masks", "annotations"),
        ("a mask of an image that is not in images", "annotations"),
        ("its mask is not there: s3://a/b.png", "annotations"),
        ("the ground truth has no line for its number", "annotations"),
        ("mask and image differ in size: 8x8, 24x32", "mask_size"),
        ("8x8 is smaller than min_side 16", "min_side"),
        ("too large: 20000x20000 is over the limit of max_pixels", "too_large"),
        ("its data ends before its end: truncated", "truncated"),
        ("an archive within an archive: not opened", "unreadable"),
        ("not an image (no format is known for its first bytes)", "unreadable"),
        ("a link or device, not a file", "unreadable"),
        ("not an image but a text: not read", "unreadable"),
        ("its decoder crashed (SIGSEGV)", "unreadable"),
    ],
)  # fmt: skip
def test_the_kind_of_a_reason(reason, kind):
    assert kind_of(reason) == kind and kind in REFUSED
