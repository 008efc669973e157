from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.membership import is_trainable
from nnunet_ssp.cohort.plain_datasets import read_plain_cases, read_stack

NAMES = ("genius_0800", "genius_0801", "genius_0900", "genius_1000")
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


def heart(seed: int) -> np.ndarray:
    """Blobs in noise: each seed is another subject."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    voxels = np.stack([gaussian_filter(rng.normal(size=(96, 96)), 5) for _ in range(6)], -1)
    return ((voxels - voxels.min()) * 1000).astype(np.float32)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of nnU-Net's own with two folds, one unlabelled and one test case."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    raw = tmp_path / "nnUNet_raw" / "Dataset300_Plain"
    for seed, name in enumerate((*NAMES, "bare", "tested")):
        part = {"bare": "imagesUn", "tested": "imagesTs"}.get(name, "imagesTr")
        save(raw / part / f"{name}_0000.nii.gz", heart(seed))
    content = {
        "channel_names": {"0": "cineMRI"},
        "labels": {"background": 0, "LV": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    sides = [NAMES[::2], NAMES[1::2]]
    folds = [{"train": list(sides[n]), "val": list(sides[1 - n])} for n in (0, 1)]
    prepared = tmp_path / "nnUNet_preprocessed" / raw.name
    prepared.mkdir()
    (prepared / "splits_final.json").write_text(json.dumps(folds))
    return raw


def save(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), file)


def check(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main(["folds", "300", "--check", *options])
    printed = capsys.readouterr()
    return status, printed.out if status != 1 or printed.out else printed.err


def test_the_cases_of_a_plain_dataset(raw: Path):
    cases = read_plain_cases(raw, None)
    assert sorted(cases) == sorted([*NAMES, "bare", "tested"])
    assert sorted(n for n, c in cases.items() if is_trainable(c)) == sorted(NAMES)
    assert [n for n, c in cases.items() if c.split == "test"] == ["tested"]
    with_pattern = read_plain_cases(raw, r"^[a-z]+(?:_\d\d)?")
    assert with_pattern["genius_0800"].subject_key == with_pattern["genius_0801"].subject_key
    assert with_pattern["genius_0900"].subject_key == "genius_09"


def test_different_hearts_pass_and_names_that_continue_are_a_note(
    raw: Path, capsys: pytest.CaptureFixture[str]
):
    status, output = check(capsys)
    assert status == 0
    assert "ok      6 subjects: none looks like one on another side" in output
    assert (
        "note    fold 0: numbers continue across its sides, as in genius_0800 and genius_0801 "
        "(1 such pair): possible repeats of one subject, not certain"
    ) in output
    assert "each case was taken as a subject; --subject-pattern REGEX" in output


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("imagesTr/genius_0800", "imagesTr/genius_1000", "on two sides of fold 0, 1"),
        ("imagesTr/genius_0900", "imagesTs/tested", "tested is a test subject"),
        ("imagesUn/bare", "imagesTs/tested", "tested is a test subject"),
    ],
)
def test_the_same_heart_under_two_names(
    raw: Path, capsys: pytest.CaptureFixture[str], one: str, other: str, words: str
):
    copy = nibabel.load(raw / f"{one}_0000.nii.gz").get_fdata()[::-1] * 3 + 7
    save(raw / f"{other}_0000.nii.gz", copy.astype(np.float32))
    status, output = check(capsys)
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("LEAK")]
    assert one.split("/")[1] in line and other.split("/")[1] in line
    assert "look like one heart" in line and line.endswith(words)


def test_different_people_who_look_alike_pass_by_the_printed_line(
    raw: Path, capsys: pytest.CaptureFixture[str]
):
    for one, other in (
        ("imagesTr/genius_0900", "imagesTs/tested"),
        ("imagesTr/genius_0800", "imagesTr/genius_1000"),
    ):
        copy = nibabel.load(raw / f"{one}_0000.nii.gz").get_fdata()[::-1] * 3 + 7
        save(raw / f"{other}_0000.nii.gz", copy.astype(np.float32))
    status, output = check(capsys)
    assert (status, output.count("LEAK")) == (1, 2)
    assert output.count("look at both, in a viewer such as ITK-SNAP: ") == 2
    for left in (1, 0):
        line = re.search(r"If different: (nnunet-ssp folds .*)", output)[1]
        status = main(shlex.split(line)[1:])
        output = capsys.readouterr().out
        assert (status, output.count("LEAK")) == (left, left)
        assert output.count("different people, as --different says") == 2 - left
    assert "similarity is how far" not in output
    assert check(capsys, "--different", "tested", "nobody")[1].startswith(
        "error: --different nobody: no subject"
    )
    assert main(["folds", "300", "--different", "tested", "nobody"]) == 1


def test_subjects_by_a_pattern(raw: Path, capsys: pytest.CaptureFixture[str]):
    status, output = check(capsys, "--subject-pattern", r"^[a-z]+(?:_\d\d)?")
    assert status == 1
    assert "LEAK    fold 0: genius_08 is in both train and val" in output
    assert "possible repeats" not in output  # the pattern says who is who
    status, output = check(capsys, "--subject-pattern", r"^x")
    assert status == 1 and "must match every case name" in output


def test_a_name_that_is_no_case(raw: Path, capsys: pytest.CaptureFixture[str]):
    (raw / "imagesTr" / "genius_0900_0000.nii.gz").unlink()
    status, output = check(capsys)
    assert status == 1 and "LEAK    fold 0: genius_0900 is not in imagesTr" in output


def test_a_pattern_where_a_table_names_the_subjects(raw: Path, capsys: pytest.CaptureFixture[str]):
    (raw / "cases.csv").touch()
    status, output = check(capsys, "--subject-pattern", "x")
    assert status == 1
    assert " must come with --check, for a dataset without cases.csv" in output


def test_a_dataset_json_that_is_none(raw: Path, capsys: pytest.CaptureFixture[str]):
    (raw / "dataset.json").write_text("{}")
    status, output = check(capsys)
    assert status == 1 and "dataset.json: not a dataset.json of nnU-Net (KeyError" in output


def test_images_of_other_formats(tmp_path: Path):
    voxels = np.random.default_rng(0).integers(0, 200, (7, 6, 5)).astype(np.uint8)
    picture = SimpleITK.GetImageFromArray(voxels.T)
    picture.SetSpacing((1.5, 1.25, 8))
    SimpleITK.WriteImage(picture, str(tmp_path / "a.nrrd"))
    read, spacing = read_stack(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read, voxels)
    np.testing.assert_allclose(spacing, (1.5, 1.25, 8))
    flat = SimpleITK.GetImageFromArray(voxels[..., 0].T)
    SimpleITK.WriteImage(flat, str(tmp_path / "b.png"))
    np.testing.assert_array_equal(read_stack(tmp_path / "b.png")[0], voxels[..., :1])
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(ValueError, match=r"c.png: the image cannot be read"):
        read_stack(tmp_path / "c.png")
