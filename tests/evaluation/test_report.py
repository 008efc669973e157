from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_ssp.evaluation.report import Page, label_window, overlay_grid, render

HOSTILE = "<script src='http://example.org/a.js'>alert(1)</script> & \"quotes\""


class Document(HTMLParser):
    """What a test wants to know of a page: elements, attributes, text."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page.html())
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "source"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self._open[-1] not in ("style", "title"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def line(figure):
    figure.subplots().plot([0, 1], [0, 1], label="line")


def full_page() -> Page:
    page = Page(HOSTILE, notice=HOSTILE)
    page.heading(HOSTILE)
    page.paragraph(HOSTILE)
    page.code(f"{HOSTILE}\n  second line")
    page.table([HOSTILE, "number"], [[HOSTILE, 0.12345], ["b", None]], caption=HOSTILE)
    page.plot(line, alt=HOSTILE, caption=HOSTILE)
    page.image(render(line), alt=HOSTILE, caption=HOSTILE)
    return page


def test_page_asks_the_network_for_nothing():
    document = Document(full_page())
    for tag, attributes in document.elements:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "srcset", "href", "data"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    policy = next(m for m in document.all("meta") if "http-equiv" in m)["content"]
    assert policy.startswith("default-src 'none'")
    assert "url(" not in full_page().html()
    assert "@import" not in full_page().html()


def test_all_text_is_escaped_and_kept():
    document = Document(full_page())
    assert document.text.count(HOSTILE) == 9
    assert f"{HOSTILE}\n  second line" in document.text
    assert [image["alt"] for image in document.all("img")] == [HOSTILE, HOSTILE]


def test_document_declares_type_language_encoding_and_viewport():
    html = full_page().html()
    assert html.startswith("<!doctype html>\n")
    document = Document(full_page())
    assert document.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in document.all("meta")
    names = {meta.get("name"): meta["content"] for meta in document.all("meta") if "name" in meta}
    assert names["viewport"] == "width=device-width, initial-scale=1"


def test_notice_comes_first():
    assert Document(Page("title", notice="read this")).text == ["read this", "title"]
    assert Document(Page("title")).text == ["title"]


def test_images_are_embedded_unchanged(tmp_path):
    png = render(line)
    (tmp_path / "a.png").write_bytes(png)
    page = Page("images")
    page.image(png, alt="bytes")
    page.image(tmp_path / "a.png", alt="file")
    for image in Document(page).all("img"):
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png


def test_plot_has_a_light_and_a_dark_image():
    page = Page("plot")
    page.plot(line, alt="a line")
    document = Document(page)
    (source,), (image,) = document.all("source"), document.all("img")
    assert source["media"] == "(prefers-color-scheme: dark)"
    corners = [
        imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))[0, 0, :3]
        for uri in (source["srcset"], image["src"])
    ]
    assert corners[0].max() < 0.15
    np.testing.assert_array_equal(corners[1], 1)


def test_render_gives_150_pixels_per_inch_and_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert imread(io.BytesIO(render(line, size=(2, 1), dark=True))).shape[:2] == (150, 300)
    assert dict(matplotlib.rcParams) == before


def test_label_window_is_a_square_around_the_labels_within_the_slice():
    labels = np.zeros((6, 40, 30), int)
    labels[2:5, 20:25, 0:4] = 3  # slices 2, 3, 4; five rows from 20, four columns at the border
    assert label_window(labels) == (3, (slice(17, 27), slice(0, 10)))
    labels[2, 0, 29] = 1
    z, (rows, columns) = label_window(labels)
    assert labels[z][rows, columns].shape == (40, 30)
    assert label_window(np.zeros((6, 4, 4))) == (3, (slice(None), slice(None)))


def test_overlay_grid_paints_each_class_on_its_slice():
    image = np.random.default_rng(0).normal(size=(3, 20, 30))
    labels = np.zeros((3, 20, 30), int)
    plain = overlay_grid({"row": (image, {"a": labels, "b": labels})}, {"LV": 1})
    labels[1, 5:15, 5:25] = 1
    painted = overlay_grid({"row": (image, {"a": labels, "b": labels})}, {"LV": 1})
    many = {f"class {i}": i for i in range(1, 9)}  # more classes than colours
    two = overlay_grid({"one": (image, {"a": labels}), "two": (image, {"a": labels})}, many)
    pictures = [imread(io.BytesIO(png))[..., :3] for png in (plain, painted, two)]
    # Above the legend, only paint has a colour.
    coloured = [(np.ptp(picture[:-100], axis=2) > 0.2).mean() for picture in pictures]
    assert coloured[0] == 0
    assert coloured[1] > 0.05
    assert coloured[2] > 0.05


def test_table_formats_numbers_and_gaps():
    page = Page("table")
    rows = [["a", 0.12345, 7], ["b", float("nan"), None]]
    page.table(["name", "float", "whole"], rows, caption="numbers", digits=2)
    document = Document(page)
    assert document.text[1:] == [
        "numbers",
        "name",
        "float",
        "whole",
        *["a", "0.12", "7", "b", "–", "–"],
    ]
    assert [cell.get("class") for cell in document.all("td")] == [None, "number", "number"] * 2
    assert document.all("details") == []


def test_long_table_is_collapsed_under_its_caption():
    page = Page("table")
    page.table(["n"], [[i] for i in range(5)], caption="Five", collapse_above=4)
    document = Document(page)
    assert len(document.all("details")) == 1
    assert document.text[1] == "Five (5 rows)"
    assert document.all("caption") == []


def test_uneven_rows_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one cell for each of the 2 columns, has 1\."):
        Page("table").table(["a", "b"], [["only one"]])
    with pytest.raises(ValueError, match=r"must be a PNG image\."):
        Page("image").image(b"GIF89a", alt="no")
    with pytest.raises(FileNotFoundError):
        Page("image").image(tmp_path / "none.png", alt="no")


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "report.html"
    Page("first").write(path)
    page = Page("second – ü")
    page.write(path)
    assert path.read_text(encoding="utf-8") == page.html()
    assert list(path.parent.iterdir()) == [path]
