"""`mapsto data review` and `corrections`: rows to an annotation tool, the worst first, and what people said of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ..core.codecs import decode, encode
from ..core.errors import UserError, nearest
from ..core.storage import Storage, absolute
from ..curate.annotation import cvat, label_studio
from ..curate.annotation.corrections import correction
from ..curate.annotation.marks import Reviewed, Task, regions, task
from ..curate.annotation.queue import queue, read_findings, read_scores
from ..data.dataset import Dataset, read_group
from ..data.export.target import Target, suffix
from .versions import opened

Tool = Literal["label-studio", "cvat"]
SHOWN = ("jpeg", "png", "webp", "gif", "bmp")
"""Formats that a browser shows; others go as PNG."""
FURTHER = ("label", "boxes", "box_labels", "segments", "mask")


def review(
    uri: str,
    tool: Tool,
    output: str,
    scores: str | None = None,
    limit: int | None = None,
    *,
    lowest: bool = False,
    rule: str | None = None,
    mask_names: Sequence[str] = (),
    force: bool = False,
) -> Iterator[str]:
    """Write a folder for a tool: `images/` and `tasks.json` with `label_config.xml`, or `annotations.xml` with
    `labels.json`. `scores`: a file of `row_id`, `score`, or a cleaning's `findings.parquet`, of which `rule` names one; without
    a file, the data set's own order. Raises UserError for a row
    that the data set lacks, and as `read_scores` and `Target.begin` do. What was done, in lines."""
    dataset, storage = opened(uri), Storage()
    if rule and not scores:
        raise UserError("--rule names findings of --scores, a cleaning's findings.parquet")
    known = _scores(storage.read(scores), scores, rule) if scores else {}
    order = queue(known, limit, lowest=lowest) if scores else _first(dataset, limit)
    places = {row_id: place for place, row_id in enumerate(order)}
    found = _where(dataset, places)
    if missing := sorted(places.keys() - {row_id for rows in found.values() for row_id in rows}):
        raise UserError(f"{scores}: row {missing[0]} is not in {uri} ({len(missing)} of {len(places)} rows are not)")
    target = Target(absolute(output), storage)
    target.begin(force=force)
    classes, columns = dataset.manifest["classes"], dataset.manifest["columns"]
    texts: dict[int, str] = {}
    ids = set(range(1, len(mask_names)))
    for rows in _rows(dataset, found, ["image", "format", *FURTHER]):
        files = []
        for row in rows:
            place = places[row["row_id"]]
            image, end = _shown(row)
            each = task(row, classes, place, end, known.get(row["row_id"]))
            files.append((f"images/{each.name}", image))
            ids |= {number for number, _ in regions(each.marks.mask)}
            texts[place] = _written(tool, each, place, mask_names)
        target.put(files)
    _finish(tool, target, [texts[place] for place in sorted(texts)], classes, columns, ids, mask_names)
    target.finish(
        {"review": tool, "dataset": dataset.artifact.uri, "fingerprint": dataset.fingerprint, "rows": len(texts)}
    )
    yield f"{target.uri}: {len(texts):,} rows for {tool}, {target.files:,} files"


def _scores(data: bytes, where: str, rule: str | None) -> dict[int, float]:
    if data[:4] == b"PAR1":
        return read_findings(data, where, rule)
    if rule:
        raise UserError(f"{where}: --rule is of a cleaning's findings.parquet, this is none")
    return read_scores(data, where)


def corrections(uri: str, file: str, output: str) -> Iterator[str]:
    """Read a tool's export, Label Studio's JSON or CVAT's XML, and write what has changed as JSON lines (see
    `curate.annotation.corrections`). Raises UserError for an unknown row, a row that comes twice, and as the
    tools' readers do; then nothing is written. What was found, in lines."""
    dataset, storage = opened(uri), Storage()
    classes, columns = dataset.manifest["classes"], dataset.manifest["columns"]
    reviewed = _read(storage.read(file), file, semantic="mask" in columns)
    answers = {answer.row_id: answer for answer in reviewed.answers}
    if len(answers) < len(reviewed.answers):
        twice = next(row for row, n in Counter(a.row_id for a in reviewed.answers).items() if n > 1)
        raise UserError(f"{file}: row {twice} comes twice")
    found = _where(dataset, answers)
    if missing := sorted(answers.keys() - {row_id for rows in found.values() for row_id in rows}):
        raise UserError(f"{answers[missing[0]].where}: row {missing[0]} is not in {uri} ({len(missing)} are not)")
    lines: list[str] = []
    changed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for rows in _rows(dataset, found, FURTHER):
        for row in rows:
            entry = correction(answers[row["row_id"]], row, classes, columns, dropped)
            if entry is not None:
                changed.update(entry["changed"])
                named = {str(name) for name in (entry.get("label"), *entry.get("box_labels", ())) if name is not None}
                unknown.update(sorted(named - {*classes}))
                lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    storage.write(absolute(output), "".join(lines).encode())
    yield f"{absolute(output)}: {len(lines):,} corrections of {len(answers):,} rows looked at"
    for what in ("label", "boxes", "mask"):
        if changed[what]:
            yield f"changed {what:<6} {changed[what]:,} rows"
    for name, count in unknown.items():
        yield f"new class '{name}' in {count:,} rows (`clean.add_classes` lets a cleaning take it){nearest(name, classes)}"
    for what, count in (reviewed.passed_over + dropped).items():
        yield f"left out: {what}: {count:,}"


def _read(data: bytes, where: str, *, semantic: bool) -> Reviewed:
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return cvat.read(data, where, semantic=semantic)
    return label_studio.read(data, where)


def _written(tool: Tool, each: Task, place: int, mask_names: Sequence[str]) -> str:
    if tool == "cvat":
        return cvat.write(each, place, mask_names)
    return json.dumps(label_studio.write(each, mask_names), ensure_ascii=False)


def _finish(
    tool: Tool,
    target: Target,
    texts: list[str],
    classes: Sequence[str],
    columns: Sequence[str],
    ids: set[int],
    names: Sequence[str],
) -> None:
    if tool == "cvat":
        labels = cvat.labels(classes, columns, ids, names)
        needed = json.dumps([{"name": name, "attributes": []} for name in labels], indent=1, ensure_ascii=False)
        files = [("annotations.xml", "".join(cvat.whole(labels, texts))), ("labels.json", needed)]
    else:
        files = [("tasks.json", "[\n" + ",\n".join(texts) + "\n]\n")]
        files.append(("label_config.xml", label_studio.config(classes, columns, ids, names)))
    target.put([(name, text.encode()) for name, text in files])


def _shown(row: Mapping[str, Any]) -> tuple[bytes, str]:
    if row["format"] in SHOWN:
        return row["image"], suffix(row["format"])
    return encode(decode(row["image"]), "png"), ".png"


def _first(dataset: Dataset, limit: int | None) -> list[int]:
    out: list[int] = []
    for name in dataset.manifest["splits"]:
        left = None if limit is None else limit - len(out)
        out += [row["row_id"] for row in dataset.read(name, ["row_id"], left)]
    return out


def _where(dataset: Dataset, wanted: Mapping[int, Any]) -> dict[tuple[str, int], set[int]]:
    """(split, row group) → the wanted rows in it."""
    out: dict[tuple[str, int], set[int]] = {}
    for name in dataset.manifest["splits"]:
        index = dataset.split(name)
        for number in range(len(index.groups)):
            have = wanted.keys() & set(read_group(index, number, ["row_id"]).column("row_id").to_pylist())
            if have:
                out[name, number] = have
    return out


def _rows(
    dataset: Dataset, found: Mapping[tuple[str, int], set[int]], columns: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """The wanted rows, row group by row group."""
    every = ["row_id", "content_sha256", "width", "height", *columns]
    for (name, number), ids in found.items():
        index = dataset.split(name)
        rows = read_group(index, number, every).to_pylist()
        yield [row for row in rows if row["row_id"] in ids]
