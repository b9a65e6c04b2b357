"""Report pages without the pictures that may show an erased row, and without the lines that name its source."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_FIGURE = re.compile(
    r'<figure class="[^"]*"><img alt="[^"]*" src="data:image/(?!svg)[^"]*"><figcaption>[^<]*</figcaption></figure>'
)
_PICTURE = re.compile(r"data:image/(?!svg)[^\"']*")
_ROW = re.compile(r"<tr class=\"[^\"]*\">(?:(?!</tr>).)*</tr>", re.DOTALL)
_CELL = re.compile(r"<td[^>]*>([^<]*)</td>")


def without_pictures(page: str, sources: Iterable[str], prefix: str, date: str) -> str:
    """The page without photographs (charts, which are SVG, stay) and without table rows that name one of `sources` or
    what begins with `prefix`; says when and why. A page that has none of them comes back as it is."""
    named = {html.escape(source) for source in sources}
    start = html.escape(prefix)

    def row(match: re.Match[str]) -> str:
        cells = _CELL.findall(match[0])
        about = any(cell in named or (start and cell.startswith(start)) for cell in cells)
        return "" if about else match[0]

    bare = _ROW.sub(row, _PICTURE.sub("data:,", _FIGURE.sub("", page)))
    if bare == page:
        return page
    note = f"<p>Rows of the data set were erased on {html.escape(date)}: the pictures that may have shown them were taken out.</p>"
    return bare.replace("</body>", f"{note}</body>")
