"""`mapsto data card`: a data set's card in Markdown, from its manifest and lineage.

What it says follows Gebru et al., Datasheets for Datasets (2018, arXiv 1803.09010), as far as a data set itself knows it:
composition, collection, cleaning, uses, distribution; its front matter is the Hugging Face Hub's
(https://huggingface.co/docs/hub/datasets-cards). What only people know is left open, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from ..data.dataset import Dataset, read_group

TERMS = ("licence", "license", "consent")
"""Columns that say what an image may be used for."""
SHOWN = 50
"""Most rows of a table."""
SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
)
TASKS = {
    "label": "image-classification",
    "boxes": "object-detection",
    "mask": "image-segmentation",
    "segments": "image-segmentation",
    "keypoints": "keypoint-detection",
    "caption": "image-to-text",
}
OPEN = "*Not known to the data set: to be written by the people who made it.*"


def card(dataset: Dataset) -> Iterator[str]:
    """The card, line by line. Reads the columns on licence and consent where there are some, no image."""
    m = dataset.manifest
    terms = {name: _values(dataset, name) for name in TERMS if name in m["columns"]}
    yield from _front(dataset, terms)
    name = dataset.artifact.uri.rstrip("/").rsplit("/", 3)[-3]
    yield from ("", f"# Data set: {_text(name)}", "")
    yield f"{m['rows_kept']:,} images in {len(m['splits'])} splits, {len(m['classes'])} classes, from `{_text(m['source'])}`."
    yield from ("", "## Motivation", "", OPEN, "", "## Composition", "")
    yield from _table(("split", "images", "shards", "MiB", "comes from"), _splits(m))
    counts, objects = m.get("counts") or {}, m.get("objects") or {}
    if "label" in m["columns"]:
        yield from _counts("Images of each class", m, counts)
    if any(objects.values()):
        yield from _counts("Objects of each class", m, objects)
    for title, key in (("Formats", "formats"), ("Longest side in pixels", "longest_side")):
        if m.get(key):
            yield from ("", f"### {title}", "", *_table((title.lower(), "images"), m[key].items()))
    if pixels := m.get("mask_pixels"):
        ids = sorted({number for found in pixels.values() for number in found}, key=int)
        rows = [(number, *(pixels.get(split, {}).get(number, 0) for split in m["splits"])) for number in ids]
        yield from ("", "### Pixels of each id in the masks", "", *_table(("id", *m["splits"]), rows))
    yield from ("", f"Columns: {', '.join(f'`{column}`' for column in m['columns'])}.", "")
    yield f"Training pixels, RGB in 0..1: mean {m['mean']}, standard deviation {m['std']}."
    yield from ("", "## Collection", "", f"Read from `{_text(m['source'])}` (layout `{m['layout']}`).", "")
    yield from _terms(terms)
    yield from ("", "## Cleaning", "")
    yield f"{m['rows_in']:,} rows in = {m['rows_kept']:,} kept + {m['rows_quarantined']:,} quarantined (`quarantine/`)."
    for title, key in (
        ("reason for quarantine", "reasons"),
        ("left out of the annotations", "dropped"),
        ("format whose metadata (places, cameras) stays", "unstripped"),
    ):
        if m.get(key):
            yield from ("", *_table((title, "count"), m[key].items()))
    yield from ("", "## Uses", "", OPEN, "", "## Lineage", "")
    yield from _lineage(dataset)
    yield from _loading(dataset)


def _front(dataset: Dataset, terms: Mapping[str, Counter[str]]) -> Iterator[str]:
    m = dataset.manifest
    licences = [value for name in ("licence", "license") for value in terms.get(name, {}) if value]
    front: dict[str, Any] = {
        "pretty_name": dataset.artifact.uri.rstrip("/").rsplit("/", 3)[-3],
        "license": licences[0] if len(licences) == 1 else "other" if licences else "unknown",
        "task_categories": list(dict.fromkeys(task for column, task in TASKS.items() if column in m["columns"])),
        "size_categories": [next((name for most, name in SIZES if m["rows_kept"] < most), "n>100M")],
    }
    yield from ("---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---")


def _splits(m: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, split in m["splits"].items():
        size = sum(file["bytes"] for file in split["files"]) / 2**20
        origin = "the source" if name in m.get("given_splits", ()) else "drawn"
        yield name, split["rows"], len(split["files"]), f"{size:,.1f}", origin


def _counts(title: str, m: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    rows = [(name, *(counts.get(split, {}).get(name, 0) for split in m["splits"])) for name in m["classes"]]
    yield from ("", f"### {title}", "", *_table(("class", *m["splits"]), rows[:SHOWN]))
    if len(rows) > SHOWN:
        yield from ("", f"and {len(rows) - SHOWN:,} more classes (`dataset.json`)")


def _terms(terms: Mapping[str, Counter[str]]) -> Iterator[str]:
    if not terms:
        yield "The rows say nothing of licence or consent."
    for name, values in terms.items():
        yield from _table((name, "images"), [(value or "(none)", count) for value, count in values.most_common(SHOWN)])


def _lineage(dataset: Dataset) -> Iterator[str]:
    meta = dataset.artifact.meta()
    yield f"- made {meta['created']} by `mapsto {meta['stage']}`, fingerprint `{meta['fingerprint']}`, content `{meta['digest']}`"
    for role, parent in meta["parents"].items():
        yield f"- from {role}: `{_text(parent['uri'])}` (`{parent['identity']}`)"
    for key, value in meta["section"].items():
        if value not in (None, [], {}):
            yield f"- {key}: `{_text(value)}`"


def _loading(dataset: Dataset) -> Iterator[str]:
    uri = dataset.artifact.uri
    yield from ("", "## How to load it", "", "```sh", f"mapsto data show {uri}", f"mapsto data verify {uri}")
    yield from (f"mapsto data export {uri} FOLDER --format parquet", "```", "", "```python")
    yield from ("from mapsto.core.artifact import Artifact", "from mapsto.core.storage import Storage")
    yield from ("from mapsto.data.dataset import Dataset", "")
    yield f"dataset = Dataset.open(Artifact({uri!r}, Storage()))"
    split = next(iter(dataset.manifest["splits"]))
    yield from (f"rows = dataset.read({split!r}, limit=10)  # dictionaries; `image` holds the encoded bytes", "```")


def _values(dataset: Dataset, column: str) -> Counter[str]:
    out: Counter[str] = Counter()
    for name in dataset.manifest["splits"]:
        index = dataset.split(name)
        for number in range(len(index.groups)):
            table = read_group(index, number, [column])
            found = table.column(column).to_pylist() if column in table.column_names else [None] * table.num_rows
            out.update("" if value is None else str(value) for value in found)
    return out


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else _text(cell) for cell in row)} |"


def _text(value: Any) -> str:
    """A value that breaks no table and no code span."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
