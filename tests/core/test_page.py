import numpy as np

from mapsto.core import chart
from mapsto.core.page import Page, show


def test_text_is_escaped_and_pictures_are_inside():
    page = Page("<b>title</b>")
    page.text("<script>alert(1)</script>")
    page.table(("a", "b"), [("<i>", 1.23456)], chosen=0)
    page.picture(np.zeros((4, 4, 3), np.uint8), 'a "picture"')
    page.picture(chart.lines({"loss": [3, 2, 1]}, [1, 2, 3], "epoch"))
    html = page.html()
    assert "<script>" not in html
    assert "<b>title" not in html
    assert "&lt;i&gt;" in html
    assert "1.235" in html
    assert html.count("data:image/png;base64,") == 1
    assert html.count("data:image/svg+xml;base64,") == 1
    assert "http" not in html.split("<body>")[1]


def test_pages_embed_one_another():
    inner = Page("inner")
    inner.heading("part")
    outer = Page("outer")
    outer.embed("stage", inner.html())
    assert outer.html().count("<body>") == 1
    assert "<h3>part</h3>" in outer.html()


def test_numbers_as_people_read_them():
    assert [show(v) for v in (1234567, 0.123456, 12345.6, True, None, "x")] == [
        "1,234,567",
        "0.1235",
        "12,346",
        "yes",
        "–",
        "x",
    ]
