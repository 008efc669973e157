from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_ssp.reporting.figures import render
from nnunet_ssp.reporting.page import Link, Noted, Page
from tests.browser import measured
from tests.evaluation.conftest import Document

HOSTILE = "<script src='http://example.org/a.js'>alert(1)</script> & \"quotes\""


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
    document = Document(full_page().html())
    for tag, attributes in document.elements:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "srcset", "href", "data"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    policy = next(m for m in document.all("meta") if "http-equiv" in m)["content"]
    assert policy.startswith("default-src 'none'")
    assert "url(" not in full_page().html()
    assert "@import" not in full_page().html()


def test_all_text_is_escaped_and_kept():
    document = Document(full_page().html())
    assert document.text.count(HOSTILE) == 9
    assert f"{HOSTILE}\n  second line" in document.text
    assert [image["alt"] for image in document.all("img")] == [HOSTILE, HOSTILE]


def test_document_declares_type_language_encoding_and_viewport():
    html = full_page().html()
    assert html.startswith("<!doctype html>\n")
    document = Document(full_page().html())
    assert document.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in document.all("meta")
    names = {meta.get("name"): meta["content"] for meta in document.all("meta") if "name" in meta}
    assert names["viewport"] == "width=device-width, initial-scale=1"


def test_links_lead_to_files_beside_the_page_and_to_rows():
    page = Page("links")
    page.paragraph("See ", Link(HOSTILE, "a b/c&d#e.html"), ".")
    page.table(["n"], [[Link("0.5", "#row 1")], [0.25]], names=["row 1", ""])
    document = Document(page.html())
    assert [link["href"] for link in document.all("a")] == ["a%20b/c%26d#e.html", "#row%201"]
    assert document.text[1:4] == ["See ", HOSTILE, "."]
    assert [row.get("id") for row in document.all("tr")] == [None, "row 1", None]


@pytest.mark.parametrize("target", ["https://example.org", "//example.org", "/etc", "mailto:a@b.c"])
def test_links_to_elsewhere_are_refused(target):
    with pytest.raises(ValueError, match=r"must be a relative path or # and a name\."):
        Page("links").paragraph(Link("text", target))


def test_notes_stand_below_what_they_are_of():
    page = Page("notes")
    cell = Noted(Link("0.50", "a"), [["first", Link("second", "b")], [HOSTILE]])
    page.table(["name", "n"], [["a", cell], ["b", Noted("–", [])]])
    document = Document(page.html())
    assert document.text[-6:] == ["0.50", "first · ", "second", HOSTILE, "b", "–"]
    assert [part["class"] for part in document.all("span")] == ["note", "note"]
    assert [cell.get("class") for cell in document.all("td")] == [None, "number"] * 2


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Mustermann_5", ["Mustermann_", "5"]),
        ("nnUNetTrainerMIMPretrain", ["nnUNet", "Trainer", "MIMPretrain"]),
        ("nnUNet_results/Dataset120", ["nnUNet_", "results/", "Dataset120"]),
        ("short_one", ["short_one"]),
        ("supercalifragilistic", ["supercalifragilistic"]),
        ("0f" * 16, ["0f" * 10, "0f" * 6]),
        ("two unbreakable words", ["two unbreakable words"]),
    ],
)
def test_names_break_behind_signs_and_never_within_a_word(name: str, parts: list[str]):
    page = Page("names")
    page.table(["Name", "n"], [[name, 1]])
    assert f"<td>{'<wbr>'.join(parts)}</td>" in page.html()


def test_a_column_of_long_words_within_a_table_may_take_several_lines():
    page = Page("words")
    words = "no LV, pieces, edge, heart too small"
    page.table(["Name", "Flags", "n", "Why"], [["a", words, 1.0, words], ["b", "none", 2.0, "x"]])
    cells = Document(page.html()).all("td")
    assert [cell.get("class") for cell in cells[:4]] == [None, "words", "number", None]


def test_code_and_images_can_be_shown_closed():
    page = Page("closed")
    page.code("a\nb", summary=HOSTILE)
    page.image(render(line), alt="image", summary="more")
    document = Document(page.html())
    assert len(document.all("details")) == 2
    assert document.text == ["closed", HOSTILE, "a\nb", "more"]


def test_a_warning_stands_out_among_notes():
    page = Page("title")
    page.remark("WARNING: no result.")
    page.remark("so it is.")
    document = Document(page.html())
    assert document.text == ["title", "WARNING: no result.", "Note: so it is."]
    assert [p.get("class") for p in document.all("p")] == ["notice", None]


def test_warnings_of_one_kind_are_a_list_in_one_box():
    page = Page("title")
    page.remark(f"WARNING: two things.\n* {HOSTILE}\n* b: wrong.")
    document = Document(page.html())
    assert document.text == ["title", "WARNING: two things.", HOSTILE, "b: wrong."]
    boxes = [own for _, own in document.elements if own.get("class") == "notice"]
    assert len(boxes) == 1 and len(document.all("li")) == 2


def test_notice_comes_first():
    assert Document(Page("title", notice="read this").html()).text == ["read this", "title"]
    assert Document(Page("title").html()).text == ["title"]


def test_images_are_embedded_unchanged(tmp_path):
    png = render(line)
    (tmp_path / "a.png").write_bytes(png)
    page = Page("images")
    page.image(png, alt="bytes")
    page.image(tmp_path / "a.png", alt="file")
    for image in Document(page.html()).all("img"):
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png


def test_plot_has_a_light_and_a_dark_image():
    page = Page("plot")
    page.plot(line, alt="a line")
    document = Document(page.html())
    (source,), (image,) = document.all("source"), document.all("img")
    assert source["media"] == "(prefers-color-scheme: dark)"
    corners = [
        imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))[0, 0, :3]
        for uri in (source["srcset"], image["src"])
    ]
    assert corners[0].max() < 0.15
    np.testing.assert_array_equal(corners[1], 1)


def test_table_formats_numbers_and_gaps():
    page = Page("table")
    rows = [["a", 0.12345, 7], ["b", float("nan"), None]]
    page.table(["name", "float", "whole"], rows, caption="numbers", digits=2)
    document = Document(page.html())
    assert document.text[1:] == [
        "numbers",
        "name",
        "float",
        "whole",
        *["a", "0.12", "7", "b", "–", "–"],
    ]
    assert [cell.get("class") for cell in document.all("td")] == [None, "number", "number"] * 2
    assert document.all("details") == []


def test_texts_that_begin_with_a_number_are_set_as_numbers_but_for_the_first_column():
    page = Page("table")
    page.table(["code", "a", "b"], [["001", "0.90–0.95", "1 of 2"], ["002", "–", "none"]])
    page.table(["n", "sign"], [[1, "-0.1"], [2, "+0.2 to 0.3"]])
    page.table(["gaps", "gaps"], [[None, "–"]])
    page.table(
        ["flag", "rule"], [["ring", "47 % at ED, which is more than 40 % of it"], ["EF", "1 %"]]
    )
    numbers = [cell.get("class") for cell in Document(page.html()).all("td")]
    assert numbers == [None, "number", None] * 2 + ["number"] * 4 + [None, "number"] + [None] * 4


def test_a_gallery_holds_its_plots_and_one_caption():
    page = Page("gallery")
    page.gallery([(line, "first"), (line, "second")], caption="both", size=(3, 2))
    document = Document(page.html())
    assert [image["alt"] for image in document.all("img")] == ["first", "second"]
    assert {image["width"] for image in document.all("img")} == {"330"}
    assert {"class": "gallery"} in document.all("div")
    assert document.text == ["gallery", "both"]


@pytest.mark.parametrize(("width", "row"), [(1280, 2), (400, 1)])
def test_two_plots_of_a_gallery_take_the_width_of_the_text(tmp_path: Path, width: int, row: int):
    """In a headless browser, if there is one."""
    page = Page("gallery")
    page.gallery([(line, "first"), (line, "second")], caption="both")
    script = """
      const room = page.querySelector('.gallery').getBoundingClientRect();
      const boxes = [...page.images].map(image => image.getBoundingClientRect());
      return {room: [room.left, room.right], boxes: boxes.map(box => [box.left, box.right])};
    """
    seen = measured(page.html(), width, tmp_path, script)
    left, right = seen["room"]
    assert sum(b - a for a, b in seen["boxes"][:row]) > 0.93 * (right - left)
    assert all(left - 1 <= a < b <= right + 1 for a, b in seen["boxes"])


def test_an_image_can_be_shown_smaller_than_it_is():
    page = Page("image")
    page.image(render(line), alt="plain")
    page.image(render(line), alt="small", width=100)
    assert [image.get("width") for image in Document(page.html()).all("img")] == [None, "100"]


def test_long_table_is_collapsed_under_its_caption():
    page = Page("table")
    page.table(["n"], [[i] for i in range(5)], caption="Five", collapse_above=4)
    document = Document(page.html())
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


def test_each_figure_is_counted_as_it_is_drawn():
    counts: list[int] = []
    page = Page("Figures", drawn=counts.append)
    page.plot(lambda canvas: canvas.subplots(), alt="one")
    page.gallery(
        [(lambda canvas: canvas.subplots(), "two"), (lambda canvas: canvas.subplots(), "three")]
    )
    assert counts == [1, 2, 3]


def test_a_picture_with_words_keeps_its_size_on_a_phone_and_scrolls():
    page = Page("t")
    page.image(render(line), alt="words", scrolls=True)
    page.image(render(line), alt="none")
    text = page.html()
    assert re.search(r'<figure><div class="scroll"><img [^>]*alt="words"></div></figure>', text)
    assert re.search(r'<figure><img [^>]*alt="none"></figure>', text)
