"""`mapsto data export`: a data set written out in a layout that others read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.storage import absolute
from ..data import export as formats
from .versions import opened

FORMATS = tuple(formats.FORMATS)


def export(uri: str, target: str, format: str, splits: Sequence[str] = (), *, force: bool = False) -> Iterator[str]:
    """Write it; what was done, in lines. Raises UserError as `data.export.export` does."""
    said: list[str] = []
    report = formats.export(opened(uri), absolute(target), format, splits, force=force, say=said.append)
    yield from said
    for what, count in report["left_out"].items():
        yield f"export: left out: {what}: {count:,}"
    size = report["bytes"] / 2**20
    yield f"{absolute(target)}: {sum(report['rows'].values()):,} rows, {report['files']:,} files, {size:,.1f} MiB"
