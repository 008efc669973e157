"""One patient under two names, found by equal voxels."""

from __future__ import annotations

import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import Case, case_files
from nnunet_ssp.cohort.copies import copies_in_dataset, lines_on_copies, shared, sum_of_values
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nifti import write_nifti
from tests.cohort.conftest import write_dataset
from tests.cohort.test_folds import make_cases
from tests.cohort.test_lookalikes import picture

AFFINE = np.diag([6.0, 6.0, 8.0, 1.0])


def image(number: int) -> np.ndarray:
    """A picture whose first planes are empty, as those of others."""
    return np.pad(picture(number, (40, 48, 8)).astype(np.float32), ((0, 0), (0, 0), (1, 0)))


def write(folder: Path, images: dict[str, int]) -> dict[str, Path]:
    """Write images in ways of their own: type and affine differ, the values do not."""
    folder.mkdir(exist_ok=True)
    for place, (case, number) in enumerate(images.items()):
        voxels = np.round(image(number)).astype((np.int16, np.float32)[place % 2])
        affine = np.diag([6.0 + place, 6.0, 8.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{case}_0000.nii.gz")
    return {case: folder / f"{case}_0000.nii.gz" for case in images}


def test_the_digest_is_of_the_values():
    voxels = np.arange(24).reshape(2, 3, 4)
    assert sum_of_values(voxels) == sum_of_values(np.asfortranarray(voxels.astype(np.float32)))
    assert (
        len(
            {
                sum_of_values(voxels),
                sum_of_values(voxels + 1),
                sum_of_values(voxels.reshape(3, 2, 4)),
            }
        )
        == 3
    )
    assert sum_of_values(np.full((2, 3), 7)) == sum_of_values(np.zeros(0)) == ""


def test_images_that_one_subject_has_twice_are_no_pair():
    sums = [("A", "1"), ("A", "1"), ("A", "2"), ("B", "3"), ("C", ""), ("D", "")]
    assert not shared(sums)
    pairs = shared([*sums, ("B", "1"), ("B", "2"), ("C", "3"), ("C", "3")])
    assert pairs == {("A", "B"): 2, ("B", "C"): 1}


def test_leaks_come_first_and_few_pairs_are_named():
    pairs = {("S0", f"S{n}"): n for n in range(1, 9)}
    lines = list(lines_on_copies(pairs, {"S8"}, 114))
    assert lines[0] == (
        "WARNING: S0 and S8 have 8 images with the same voxels: one patient under two names? S8 is a test subject: a "
        "leak. Leave one of them out, or keep both on one side of a fold (folds --from FILE). Compare all: "
        "nnunet-ssp folds 114 --check"
    )
    assert lines[1].startswith("WARNING: S0 and S1 have 1 image with the same voxels: one patient")
    assert "test subject" not in lines[1]
    assert lines[5:] == ["WARNING: 3 further pairs of subjects with the same voxels"]


def test_a_dataset_without_a_table(tmp_path: Path):
    training = write(tmp_path / "imagesTr", {"A_frame00": 0, "A_frame01": 0, "B": 1, "C": 2})
    training |= write(tmp_path / "imagesUn", {"D": 3, "E": 2})
    testing = write(tmp_path / "imagesTs", {"T": 4, "B": 5})
    assert len(copies_in_dataset(training, testing, {}, 7, 1)) == 1  # C and E
    testing = write(tmp_path / "imagesTs", {"T": 0, "B": 1})
    said = [line.partition(" Leave")[0] for line in copies_in_dataset(training, testing, {}, 7, 1)]
    same = "with the same voxels: one patient under two names?"
    assert said == [
        f"WARNING: A and T have 1 image {same} T is a test subject: a leak.",
        f"WARNING: B and B of imagesTs have 1 image {same} B of imagesTs is a test subject: a leak.",
        f"WARNING: C and E have 1 image {same}",
    ]


def test_files_that_cannot_be_read_and_other_formats(tmp_path: Path):
    files = {}
    for name, content in {"a.nii.gz": b"", "b.nii.gz": b"no", "c.png": b"x", "d.png": b"x"}.items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    files["e"] = tmp_path / "missing.nii.gz"
    (line,) = copies_in_dataset(files, {}, {}, 7, 1)
    assert line.startswith("WARNING: c.png and d.png have 1 image with")


@pytest.mark.parametrize("copied", [True, False])
def test_a_converted_dataset_and_the_line(tmp_path: Path, monkeypatch, capsys, copied: bool):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    cases: dict[str, Case] = make_cases(dict.fromkeys("ABC", "GE"))
    cases |= make_cases({"T": "GE"}, split="test")
    raw = tmp_path / "raw" / "Dataset114_Toy"
    write_dataset(raw, cases)
    write_json(raw / "convert.json", {})
    number = {"A": 0, "B": 1, "C": 2, "T": 1 if copied else 3}
    for case in cases.values():
        file = case_files(raw, case)[0]
        file.parent.mkdir(exist_ok=True)
        write_nifti(file, image(number[case.subject]), AFFINE)
    images = {name: case_files(raw, case)[0] for name, case in cases.items()}
    testing = {name: file for name, file in images.items() if cases[name].split == "test"}
    training = {name: file for name, file in images.items() if name not in testing}
    lines = copies_in_dataset(training, testing, cases, 114, 1, converted=True)
    assert len(lines) == copied
    if copied:
        assert lines[0].startswith("WARNING: B and T have 1 image with")
        command = lines[0].rpartition("Compare all: ")[2]
        assert main(shlex.split(command)[1:]) == 1
        assert "LEAK    B and T look like one heart" in capsys.readouterr().out
