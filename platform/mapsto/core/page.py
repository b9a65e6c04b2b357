"""A report page: one self-contained HTML file of headings, tables and pictures, readable without a server."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

STYLE = """
:root{--ink:#1b1f24;--dim:#667;--line:#dde1e6;--accent:#0b6bcb;--bg:#fff;--soft:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--dim:#99a3b0;--line:#333a44;--accent:#6cb2ff;--bg:#14181d;--soft:#1c2229}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:2rem 1.25rem 4rem;color:var(--ink);background:var(--bg);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.4rem 0 .7rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}h3.title{display:none}p{margin:.4rem 0;max-width:75ch}p.dim,figcaption,th{color:var(--dim)}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}th{font-weight:500}
td.number{text-align:right}tr.chosen td{font-weight:600;background:var(--soft)}
.cards{display:flex;flex-wrap:wrap;gap:.7rem;margin:.8rem 0}.card{background:var(--soft);border-radius:8px;padding:.6rem 1rem;min-width:8rem}
.card b{display:block;font-size:1.35rem;font-weight:600}.card span{color:var(--dim);font-size:.85rem}
.pictures{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;max-width:100%}figure img{max-width:100%;border-radius:6px;display:block}
figure.small{width:130px}figure.small img{width:130px;height:130px;object-fit:contain;background:var(--soft);image-rendering:auto}
figcaption{font-size:.8rem;margin-top:.2rem;overflow-wrap:anywhere}a{color:var(--accent)}code{font-size:.9em}
pre{background:var(--soft);padding:.8rem 1rem;border-radius:8px;overflow-x:auto;font-size:.85rem}
"""


class Page:
    """Built from top to bottom; every text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="dim">{html.escape(subtitle)}</p>')

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def link(self, text: str, target: str) -> None:
        self._parts.append(f'<p><a href="{html.escape(target, quote=True)}">{html.escape(text)}</a></p>')

    def cards(self, values: Mapping[str, Any]) -> None:
        """A row of figures, each with its name under it."""
        cells = (
            f'<div class="card"><b>{html.escape(show(v))}</b><span>{html.escape(k)}</span></div>'
            for k, v in values.items()
        )
        self._parts.append(f'<div class="cards">{"".join(cells)}</div>')

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]], chosen: int | None = None) -> None:
        """`chosen`: number of the row to set off."""
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
        body = []
        for number, row in enumerate(rows):
            cells = "".join(
                f'<td class="{"number" if isinstance(v, (int, float)) else ""}">{html.escape(show(v))}</td>'
                for v in row
            )
            body.append(f'<tr class="{"chosen" if number == chosen else ""}">{cells}</tr>')
        self._parts.append(f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>')

    def picture(self, picture: np.ndarray | bytes, caption: str = "") -> None:
        """One picture at its own width: H×W×3 uint8, or encoded PNG, JPEG or SVG bytes."""
        self._parts.append(_figure(picture, caption, ""))

    def pictures(self, pictures: Iterable[tuple[np.ndarray | bytes, str]], *, small: bool = True) -> None:
        """A wall of thumbnails with captions; not `small`: side by side at their own widths."""
        size = "small" if small else ""
        self._parts.append(f'<div class="pictures">{"".join(_figure(p, c, size) for p, c in pictures)}</div>')

    def embed(self, heading: str, page: str) -> None:
        """Another page's body under a heading of its own: a stage's page in the recipe's."""
        body = page.partition("<body>")[2].rpartition("</body>")[0]
        body = (
            body.replace("<h2>", "<h3>")
            .replace("</h2>", "</h3>")
            .replace("<h1>", '<h3 class="title">')
            .replace("</h1>", "</h3>")
        )
        self._parts.append(f"<h2>{html.escape(heading)}</h2>{body}")

    def html(self) -> str:
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>{''.join(self._parts)}</body></html>"
        )


def show(value: Any) -> str:
    """A number as people read it: four significant digits, thousands set apart."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def _figure(picture: np.ndarray | bytes, caption: str, size: str) -> str:
    from .codecs import encode

    data = (
        encode(picture, "jpeg" if picture.ndim == 3 and picture.size > 60_000 else "png")
        if isinstance(picture, np.ndarray)
        else picture
    )
    kind = "svg+xml" if data.lstrip()[:4] in (b"<svg", b"<?xm") else "jpeg" if data[:2] == b"\xff\xd8" else "png"
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure class="{size}"><img alt="{html.escape(caption, quote=True)}" src="data:image/{kind};base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
