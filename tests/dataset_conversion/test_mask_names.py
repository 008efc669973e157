from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.dataset_conversion.mask_names import (
    expected_name,
    listed,
    name_beside,
    passed_over,
    remarks_on_masks,
    require_some,
    unlabelled_lines,
)


def subject(folder: Path, name: str, *masks: str) -> CineTask:
    image = folder / f"{name}_sa.nii.gz"
    files = tuple(folder / mask for mask in masks)
    for file in (image, *files):
        file.touch()
    return CineTask(name, "train", (image, *files), (image,), files, image, ("LV",), (), "")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("p1_seg.nii.gz", "p1_gt.nii.gz"),
        ("p1_sa.nii.gz", "p1_sa_gt.nii.gz"),  # as its image, in a folder of masks
        ("P1 Label.nii", "p1_gt.nii.gz"),
        ("p1_frame07-mask.nii.gz", "p1_frame07_gt.nii.gz"),
        ("seg_p1.nrrd", "p1_gt.nii.gz"),
        ("p1_by_hand.nii.gz", "p1_gt.nii.gz"),
        ("q2_seg.nii.gz", ""),  # another patient than q22
        ("p12_seg.nii.gz", ""),
        ("notes.txt", ""),
    ],
)
def test_the_nearest_name_of_a_mask(file: str, expected: str):
    assert expected_name(Path(file), ["p1", "q22"], ["p1_sa"]) == expected


def test_a_mask_among_images_is_called_after_one_of_these(tmp_path: Path):
    for name in ("q1_seg.nii.gz", "q1_sa.nii.gz", "q1_segmented.nii.gz", "table.csv", ".x.nii"):
        (tmp_path / name).touch()
    (tmp_path / "q2").mkdir()
    assert name_beside(tmp_path / "q1_seg.nii.gz") == "q1_gt.nii.gz"
    assert name_beside(tmp_path / "q1_sa_seg.nii.gz") == "q1_sa_gt.nii.gz"
    assert name_beside(tmp_path / "q2 label.nii") == "q2_gt.nii.gz"
    assert name_beside(tmp_path / "table_seg.nii") == ""
    (tmp_path / "q1_gt.nii.gz").touch()
    assert name_beside(tmp_path / "q1_seg.nii.gz") == ""


def test_files_that_are_used_for_nothing(tmp_path: Path):
    tasks = [subject(tmp_path, "p1", "p1_gt.nii.gz"), subject(tmp_path, "p2")]
    for name in (".DS_Store", "p2_seg.nii.gz", "p9_gt.nii.gz", "a.txt"):
        (tmp_path / name).touch()
    assert [f.name for f in passed_over(tmp_path, tasks)] == ["a.txt", "p2_seg.nii.gz"]
    both = passed_over(tmp_path, tasks, also_masks=True)
    assert listed(both, tmp_path, tasks) == (
        "a.txt, p2_seg.nii.gz (call it p2_gt.nii.gz), p9_gt.nii.gz"
    )
    (said,) = remarks_on_masks(tmp_path, tasks)
    assert "2 files in" in said and "p9_gt" not in said
    require_some(tmp_path, tasks)
    with pytest.raises(FileNotFoundError, match="no masks here of 1 subject"):
        require_some(tmp_path, tasks[1:])
    assert remarks_on_masks(tmp_path, [subject(tmp_path, "p2", "p2_seg.nii.gz")])[0].count("(") == 0


def test_many_files_are_counted(tmp_path: Path):
    task = subject(tmp_path, "p1")
    for number in range(7):
        (tmp_path / f"x{number}.txt").touch()
    said = listed(passed_over(tmp_path, [task]), tmp_path, [task])
    assert said == "x0.txt, x1.txt, x2.txt, x3.txt, x4.txt, ... (7 in all)"


def test_nothing_labelled_is_said_with_the_reason(tmp_path: Path):
    with_mask, without = subject(tmp_path, "p1", "p1_gt.nii.gz"), subject(tmp_path, "p2")
    assert "all masks are empty" in unlabelled_lines(None, [with_mask])[0]
    assert "--labels FOLDER" in unlabelled_lines(None, [without])[0]
