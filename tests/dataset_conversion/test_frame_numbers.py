"""What a number in the name of a mask counts, and from where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.dataset_conversion.frame_numbers import (
    counted_frames,
    frame_of,
    refuse_counted_from_one,
    remarks_on_frames,
)
from nnunet_ssp.files.nifti import read_nifti, write_nifti
from nnunet_ssp.nnunet import dataset_folder

AFFINE = np.diag([1.5, 1.25, 8, 1])
SHAPE = (6, 5, 4)
FRAMES = 7


def subject(
    name: str,
    numbers: Sequence[int],
    images: Sequence[str] = (),
    frames_from: int | None = None,
    folder: Path = Path("own"),
) -> CineTask:
    files = tuple(folder / image for image in images or (f"{name}_4d.nii.gz",))
    masks = tuple(folder / f"{name}_frame{number:02}_gt.nii.gz" for number in numbers)
    return CineTask(
        name,
        "train",
        (*files, *masks),
        files,
        masks,
        folder,
        ("LV",),
        (),
        "",
        frames_from=frames_from,
    )


def own_cine(root: Path, **numbers: Sequence[int]) -> Path:
    """4D files of seven frames, the masks called as ACDC's; each mask marks the voxel of its number."""
    root.mkdir(exist_ok=True)
    for seed, (name, its_numbers) in enumerate(numbers.items()):
        voxels = np.random.default_rng(seed).integers(1, 900, (*SHAPE, FRAMES)).astype(np.int16)
        write_nifti(root / f"{name}_4d.nii.gz", voxels, AFFINE)
        for number in its_numbers:
            mask = np.zeros(SHAPE, np.uint8)
            mask[:4, :4, 1], mask[1:3, 1:3, 1] = 2, 1
            mask.flat[number] = 3
            write_nifti(root / f"{name}_4d_frame{number:02}_gt.nii.gz", mask, AFFINE)
    return root


@pytest.mark.parametrize(("first", "frames"), [(None, (1, 6)), (0, (1, 6)), (1, (0, 5))])
def test_masks_go_to_the_frames_that_the_user_counts(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first, frames
):
    root = own_cine(tmp_path / "own", HEART_05=(1, 6))
    line = ["convert", "cine", "-i", str(root), "-d", "119", "--keep-ids"]
    line += [] if first is None else ["--frames-from", str(first)]
    assert main([*line, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert main(line) == 0
    said = capsys.readouterr().out
    target = dataset_folder(raw, 119)
    voxels, _ = read_nifti(root / "HEART_05_4d.nii.gz")
    assert len(list((target / "labelsTr").iterdir())) == 2
    for number, frame in zip((1, 6), frames, strict=True):
        mask, _ = read_nifti(target / f"labelsTr/HEART_05_4d_frame{frame:02}.nii.gz")
        image, _ = read_nifti(target / f"imagesTr/HEART_05_4d_frame{frame:02}_0000.nii.gz")
        assert mask.flat[number] == 3
        assert np.array_equal(image, voxels[..., frame])
    rule = f"Masks of HEART_05_4d belong to frames 1 and 6, counted from {first or 0}."
    doubt = "If the names of your masks count from 1, each is one frame late"
    options = json.loads((target / "convert.json").read_text())["options"]
    assert options.get("frames_from") == first
    for text in (said, dry):
        assert text.count(rule) == 1
        assert (f"WARNING: {rule} {doubt}" in text) == (doubt in text) == (first is None)


def test_a_source_that_is_added_says_it_too(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("one", "two"):
        own_cine(tmp_path / name, **{name: (1, 5)})
    line = ["convert", "cine", "-i", str(tmp_path / "one"), "-d", "119", "--dry-run"]
    assert main([*line, "--add", f"cine:{tmp_path / 'two'}", "--frames-from", "1"]) == 0
    said = capsys.readouterr().out
    assert "\nMasks of one_4d belong to frames 1 and 5, counted from 1." in said
    assert "WARNING: Masks of two_4d belong to frames 1 and 5, counted from 0. If" in said


@pytest.mark.parametrize("dry", [True, False])
def test_numbers_that_only_count_from_one_are_refused_for_all(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: bool
):
    """The other subjects' masks would lie one frame late, unseen."""
    root = own_cine(tmp_path / "own", a=(1, 3), b=(1, FRAMES))
    line = ["convert", "cine", "-i", str(root), "-d", "119", *["--dry-run"] * dry]
    assert main(line) == 1
    said = capsys.readouterr().err
    assert "b_4d_frame07_gt.nii.gz: frame (=7) of 7 frames: " in said
    assert not list(raw.glob("Dataset*"))
    assert main([*line, "--frames-from", "1"]) == 0
    capsys.readouterr()
    again = [*line, "--frames-from", "0", *["--overwrite"] * (not dry)]
    assert main(again) == 1  # b alone
    assert "frame (=7) must be within 0 to 6.\n" in capsys.readouterr().out


def test_one_frame_zero_says_that_all_count_from_zero(tmp_path: Path):
    own_cine(tmp_path, a=(0, 3), b=(1, FRAMES))
    tasks = [
        subject(f"{name}_4d", numbers, [f"{name}_4d.nii.gz"], folder=tmp_path)
        for name, numbers in (("a", (0, 3)), ("b", (1, FRAMES)))
    ]
    refuse_counted_from_one(tasks)  # b's mask is refused with it
    assert remarks_on_frames(tasks) == [
        "Masks of a_4d belong to frames 0 and 3, counted from 0 (2 subjects in all)."
    ]
    with pytest.raises(ValueError, match="seem to count frames from 1"):
        refuse_counted_from_one(tasks[1:])


def test_no_warning_where_nothing_speaks_for_one():
    (said,) = remarks_on_frames([subject("a", (4,))])
    assert said.startswith("Masks of a belong to frame 4, counted from 0. If ")
    assert remarks_on_frames([subject("a", ())]) == []


@pytest.mark.parametrize(
    ("images", "counted"),
    [
        (["a.nii.gz"], True),
        (["IM1.dcm", "IM2.dcm"], True),
        (["a01.nii.gz", "a02.nii.gz"], True),
        (["a_frame01.nii.gz", "a_frame02.nii.gz"], False),
    ],
)
def test_which_numbers_count_frames(images: list[str], counted: bool):
    assert bool(counted_frames(subject("a", (1,), images))) is counted


def named(*numbers: int, pattern: str = "a_frame{:02}") -> list[Path]:
    return [Path(f"{pattern.format(number)}.nii.gz") for number in numbers]


@pytest.mark.parametrize(
    ("images", "first", "slices", "number", "expected"),
    [
        ([], None, False, 1, 1),
        ([], 0, False, 1, 1),
        ([], 1, False, 1, 0),
        ([], 1, False, 3, 2),
        (named(1, 2, 3), None, False, 1, 0),
        (named(1, 2, 3), 1, False, 1, 0),
        (named(0, 1, 2), 1, False, 1, 1),
        (named(1, 2, 3, pattern="a_{:02}"), None, False, 1, 1),
        (named(1, 2, 3, pattern="a_{:02}"), 1, False, 1, 0),
        # A file for each slice and frame
        (sorted(2 * named(1, 2, 3, pattern="s1_frame{:02}")), None, True, 1, 0),
        (named(1, 2, 3, 4, pattern="s{}"), None, True, 1, 1),
    ],
)
def test_the_frame_of_a_mask(images, first, slices: bool, number: int, expected: int):
    file = Path(f"S_frame{number:02}_gt.nii.gz")
    found = frame_of(file, images, SHAPE, slices=slices, n_frames=3, first=first)
    assert found == expected


@pytest.mark.parametrize(
    ("number", "first", "words"),
    [
        (
            3,
            None,
            r"within 0 to 2\. If the names of your masks count frames from 1: --frames-from 1\.$",
        ),
        (3, 0, r"frame \(=3\) must be within 0 to 2\.$"),
        (4, None, r"frame \(=4\) must be within 0 to 2\.$"),
        (0, 1, r"frame \(=0\) must be within 1 to 3\.$"),
        (4, 1, r"frame \(=4\) must be within 1 to 3\.$"),
    ],
)
def test_frames_that_do_not_exist(number: int, first: int | None, words: str):
    file = Path(f"S_frame{number:02}_gt.nii.gz")
    with pytest.raises(ValueError, match=words):
        frame_of(file, [], SHAPE, slices=False, n_frames=3, first=first)
