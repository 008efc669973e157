from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.demo import report as demo_report
from tests.browser import WIDTHS, seen


def test_report_opens_with_the_caveat_and_holds_every_part(finished):
    commands, _ = finished
    written = Path("demo/report.html").read_text(encoding="utf-8")
    html = written.replace("<wbr>", "")  # where names may break
    body = html.partition("<main>\n")[2]
    assert body.startswith(f'<p class="notice">{demo_report.CAVEAT}</p>')
    assert body.count("<img ") == 2 + 2 + 1  # curves, movement, overlays
    captions = ("Before pretraining.", "After 10 epochs of pretraining.")
    assert [caption in body for caption in captions] == [True, True]
    assert "After 5 epochs" not in body
    for step in commands.steps:
        assert f"<td>{step.name}</td>" in body
    for name in ("LV", "MYO", "RV", "Mean", "test0", "test1", "nnunetv2"):
        assert f"<td>{name}</td>" in body or f"<th>{name}</th>" in body
    # Four labelled subjects, so fold 0 leaves one out of pretraining and of fine-tuning.
    assert "saw 9 frames of 3 subjects, without labels" in body
    assert "the labels of 6 frames of 3 subjects" in body
    assert "4 frames of 2 subjects: the test subjects" in body
    assert "the commands that prepare and each training print: they choose method and" in body


def test_scores_are_means_over_subjects_of_means_over_frames():
    pd = pytest.importorskip("pandas")
    rows = [
        ("Fine-tuned", "s1", "a", "LV", 1.0),
        ("Fine-tuned", "s1", "b", "LV", 0.0),
        ("Fine-tuned", "s2", "c", "LV", 1.0),
        ("Fine-tuned", "s1", "a", "RV", 0.25),
        ("Fine-tuned", "s2", "c", "RV", 0.25),
        ("From scratch", "s1", "a", "LV", 0.0),
        ("From scratch", "s1", "a", "RV", 1.0),
    ]
    scores = pd.DataFrame(rows, columns=["model", "subject", "case", "class", "dice"])
    means = demo_report.class_means(scores)
    assert list(means.index) == ["LV", "RV", "Mean"]
    assert means["Fine-tuned"].tolist() == [0.75, 0.25, 0.5]
    assert means["From scratch"].tolist() == [0, 1, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_a_desktop_and_a_phone(finished, tmp_path, width):
    found = seen(Path("demo/report.html"), width, tmp_path)
    assert found["width"] <= found["room"] <= width
