from __future__ import annotations

import base64
import io
import re
from colorsys import rgb_to_hsv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.phantom import PhantomSubject
from nnunet_ssp.predict.inputs import InputCine
from nnunet_ssp.predict.page import PAINT, _draw_curves, run_page, subject_page

LABELS = Labels(
    {"LV": (1,), "MYO": (2,), "RV": (3,)}, structures={n: n for n in ("LV", "MYO", "RV")}
)


def record(n_frames: int, **changed: object) -> dict:
    curve = [float(value) for value in range(n_frames, 0, -1)]
    return {
        "frames": {"lv_ml": curve, "rv_ml": curve, "disagreement_percent": [None] * n_frames},
        "subject": {
            "ed_frame": 0,
            "es_frame": n_frames - 1,
            "lv_edv_ml": 3.0,
            "lv_ef_percent": None,
        },
        "flags": {},
        "notes": ["<b>"],
    } | changed


def test_the_most_doubtful_come_first() -> None:
    doubt = {"disagreement_percent": 9.0}
    records = {
        "calm": record(3),
        "unsure": record(3, subject=doubt),
        "bad": record(3, flags={"EF": "3 %", "hole": "slice 4"}),
    }
    page = run_page(records, {"none": "no cine <i>"}).html()
    order = re.findall(r'href="(\w+)_seg\.html"', page)
    assert order == ["bad", "unsure", "calm"]
    # On a phone the columns before the numbers are in sight
    heads = re.findall("<th[^>]*>([^<]+)</th>", page)
    assert heads[heads.index("Subject", 2) : heads.index("EDV ml")] == ["Subject", "Flags"]
    assert page.index("EF, hole") < page.index("3.0")
    assert "no cine &lt;i&gt;" in page and "a slice without LV between two" in page
    assert "identifies patients" in page and "no medical device" in page
    assert "Refused" not in run_page(records, {}).html()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            (None, None),
            "Disagreement is empty for one fold without mirroring, and where nothing is",
        ),
        ((2.0, None), "compare with subjects whose masks you have looked at."),
        ((1.0, 9.0, 2.5), "the median here is 2.5 %, so look at those far above it."),
    ],
)
def test_the_page_says_what_disagreement_is_high(values: tuple, words: str) -> None:
    records = {
        f"s{i}": record(3, subject={"disagreement_percent": value})
        for i, value in enumerate(values)
    }
    assert words in run_page(records, {}).html()
    assert "Disagreement is" not in run_page({}, {"none": "no cine"}).html()


@pytest.fixture
def study(subject: PhantomSubject) -> InputCine:
    return InputCine(subject.image, subject.affine, None, (0, 1, 2), None, 0.05, [])


def test_the_curves_have_title_units_and_a_legend_below() -> None:
    figure = Figure((5.6, 2.8), layout="constrained")
    _draw_curves(figure, "patient: volumes", record(3)["frames"], {0: "ED", 2: "ES"})
    (axes,) = figure.axes
    assert figure.get_suptitle() == "patient: volumes"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("frame", "volume (ml)")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["LV", "RV"]
    assert axes.get_legend() is None


def test_a_subject_has_curves_player_and_sheets(subject: PhantomSubject, study: InputCine) -> None:
    n_frames = subject.image.shape[3]
    flags = {"EF": "3 %"}
    page = subject_page("s", record(n_frames, flags=flags), study, subject.labels, LABELS).html()
    sheets = re.findall(r'<div class="sheet">(.*?)</div>', page)
    assert [re.findall("<figcaption>(.*?)</figcaption>", sheet) for sheet in sheets] == [
        [f"slice {z + 1}" for z in range(subject.image.shape[2])]
    ] * 2
    assert page.count('class="player"') == 1 and 'data-ms="50"' in page
    assert "All slices at ED, frame 0" in page and f"All slices at ES, frame {n_frames - 1}" in page
    assert (
        "<td>Here 3 %. Raised by: the LV&#x27;s EF is outside of 5 to 85 %</td>" in page
        and "EDV 3 ml." in page
    )
    assert "&lt;b&gt;" in page
    sources = dict(
        re.findall(r'class="(images|contours)" src="data:image/png;base64,([^"]+)"', page)
    )
    grey, lines = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[name]))).convert(mode))
        for name, mode in (("images", "L"), ("contours", "RGBA"))
    )
    width, height = (int(re.search(f'data-{s}="(\\d+)"', page)[1]) for s in ("width", "height"))
    assert grey.shape == (subject.image.shape[2] * height, n_frames * width)
    assert lines.shape == (*grey.shape, 4)
    assert {tuple(colour) for colour in lines[lines[..., 3] > 0]} == {
        (230, 159, 0, 255),
        (0, 158, 115, 255),
        (86, 180, 233, 255),
    }
    # The contours of slice 2 at frame 1 are borders of that mask: as many columns and rows as it spans.
    tile = lines[2 * height : 3 * height, width : 2 * width, 3] > 0
    mask = subject.labels[:, :, 2, 1].T > 0
    for axis in (0, 1):
        assert np.ptp(np.flatnonzero(tile.any(axis))) == np.ptp(np.flatnonzero(mask.any(axis)))


def test_colours_are_called_what_they_are(study: InputCine, subject: PhantomSubject) -> None:
    hues = {"orange": (25, 50), "sky blue": (190, 215), "green": (140, 175)}  # degrees
    page = subject_page("s", record(subject.image.shape[3]), study, subject.labels, LABELS).html()
    (said,) = re.findall(r"Contours: (.*?)\.", page)
    words = dict(part.split(" ", 1) for part in said.split(", "))
    assert words.keys() == PAINT.keys() == {"LV", "MYO", "RV"}
    for structure, word in words.items():
        hue, saturation, _ = rgb_to_hsv(*to_rgb(PAINT[structure]))
        low, high = hues[word]
        assert low < 360 * hue < high and saturation > 0.5


def test_a_mask_without_heart_and_one_frame_have_a_page(study: InputCine, tmp_path: Path) -> None:
    empty = np.zeros(study.voxels.shape, np.uint8)
    one = record(1, subject={"ed_frame": 0})
    subject_page("s", one, study, empty, LABELS).write(tmp_path / "s.html")
    page = (tmp_path / "s.html").read_text()
    assert "All slices at ED" in page and "All slices at ES" not in page
