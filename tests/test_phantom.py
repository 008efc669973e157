from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssp.phantom import (
    CSV_NAME,
    LV,
    MYO,
    PATHOLOGIES,
    RV,
    VENDORS,
    PhantomSubject,
    _code,
    make_subject,
    write_mnms,
)

SUBJECTS = range(12)


@pytest.fixture(scope="module")
def subjects() -> list[PhantomSubject]:
    return [make_subject(i, seed=1, frames=10) for i in SUBJECTS]


def ml(subject: PhantomSubject, value: int, frame: int) -> float:
    voxel = abs(np.linalg.det(subject.affine[:3, :3])) / 1000
    return float((subject.mask[..., frame] == value).sum() * voxel)


def base_first(subject: PhantomSubject) -> bool:
    return bool(subject.affine[:3, 2] @ (-1, 1, -1) > 0)  # RAS: the apex is left, front, low


def outer_border(inside: np.ndarray) -> np.ndarray:
    """Pixels outside a 2D region with one of its pixels as a 4-neighbour."""
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    return grown & ~inside


def test_a_subject_is_reproducible_and_differs_from_the_next() -> None:
    first, again, other, population = (
        make_subject(index, seed=seed, matrix=48, frames=3, vendor="A")
        for index, seed in ((5, 0), (5, 0), (6, 0), (5, 1))
    )
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    np.testing.assert_array_equal(first.affine, again.affine)
    for different in (other, population):
        assert first.code != different.code
        assert not np.allclose(first.affine, different.affine)


@pytest.mark.parametrize("matrix, frames, slices", [(32, 2, 3), (50, 5, 4), (96, 4, None)])
@pytest.mark.parametrize("vendor", VENDORS)
def test_shapes_and_types(vendor: str, matrix: int, frames: int, slices: int | None) -> None:
    s = make_subject(3, vendor=vendor, matrix=matrix, frames=frames, slices=slices)
    assert s.image.dtype == np.int16
    assert s.mask.dtype == np.uint8
    assert s.image.shape == s.mask.shape
    assert max(s.image.shape[:2]) <= matrix
    assert s.image.shape[3] == frames
    assert s.image.shape[2] == slices if slices else 6 <= s.image.shape[2] <= 12
    assert s.vendor == vendor
    assert s.centre in VENDORS[vendor].centres
    assert s.pathology in PATHOLOGIES


def test_the_field_of_view_does_not_depend_on_the_matrix() -> None:
    views = [
        matrix * np.linalg.norm(make_subject(0, matrix=matrix, frames=2).affine[:3, 0])
        for matrix in (48, 96)
    ]
    assert views[0] == pytest.approx(views[1])


def test_labels_stand_at_ed_and_es_only(subjects: list[PhantomSubject]) -> None:
    for s in subjects:
        assert s.ed != s.es
        labelled = np.flatnonzero(s.mask.any((0, 1, 2)))
        assert set(labelled) == {s.ed, s.es}
        for frame in labelled:
            assert set(np.unique(s.mask[..., frame])) == {0, LV, MYO, RV}


def test_volumes_are_those_of_a_beating_heart(subjects: list[PhantomSubject]) -> None:
    for s in subjects:
        assert 50 < ml(s, LV, s.ed) < 250
        assert 0.05 < 1 - ml(s, LV, s.es) / ml(s, LV, s.ed) < 0.8
        assert 0.1 < 1 - ml(s, RV, s.es) / ml(s, RV, s.ed) < 0.8
        # Constant but for where the slices happen to cut the heart.
        assert ml(s, MYO, s.es) / ml(s, MYO, s.ed) == pytest.approx(1, abs=0.2)


def test_more_ejection_in_hypertrophic_than_in_dilated_hearts() -> None:
    found: dict[str, list[float]] = {name: [] for name in PATHOLOGIES}
    for i in range(40):
        s = make_subject(i, matrix=48, frames=6)
        found[s.pathology].append(1 - ml(s, LV, s.es) / ml(s, LV, s.ed))
    assert min(len(values) for values in found.values()) >= 3
    assert min(found["HCM"]) > max(found["DCM"])


def test_the_stack_is_fine_enough_that_more_slices_measure_the_same_volume() -> None:
    few, many = (make_subject(2, frames=4, slices=n) for n in (8, 24))
    for value in (LV, MYO):
        assert ml(few, value, few.ed) == pytest.approx(ml(many, value, many.ed), rel=0.15)


def test_myocardium_encloses_the_lv(subjects: list[PhantomSubject]) -> None:
    for s in subjects:
        mask = s.mask if base_first(s) else s.mask[:, :, ::-1]
        for frame in (s.ed, s.es):
            slices = np.flatnonzero((mask[..., frame] == LV).any((0, 1)))
            assert len(slices) >= 4
            for z in slices[1:]:  # in the first one the outflow tract may open the wall
                label = mask[:, :, z, frame]
                assert set(label[outer_border(label == LV)]) == {MYO}


def test_the_heart_narrows_towards_the_end_the_affine_calls_apex(
    subjects: list[PhantomSubject],
) -> None:
    assert {base_first(s) for s in subjects} == {True, False}
    for s in subjects:
        for value in (LV, RV):
            area = (s.mask[..., s.ed] == value).sum((0, 1))
            basal, apical = area[: len(area) // 2].sum(), area[(len(area) + 1) // 2 :].sum()
            if not base_first(s):
                basal, apical = apical, basal
            assert basal > 1.2 * apical


def test_the_affine_is_orthogonal_and_its_anatomy_true(subjects: list[PhantomSubject]) -> None:
    for s in subjects:
        axes = s.affine[:3, :3] / np.linalg.norm(s.affine[:3, :3], axis=0)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
        places = [s.affine[:3, :3] @ np.argwhere(s.mask[..., s.ed] == k).mean(0) for k in (LV, RV)]
        left, front, _ = places[0] - places[1]
        assert left < 0  # RAS: the LV lies to the patient's left of the RV
        assert front < 0  # and behind it


def test_papillary_muscles_are_dark_and_labelled_lv(subjects: list[PhantomSubject]) -> None:
    dark = 0
    for s in subjects:
        middle = s.image.shape[2] // 2
        image, label = s.image[:, :, middle, s.ed], s.mask[:, :, middle, s.ed]
        between = (np.median(image[label == LV]) + np.median(image[label == MYO])) / 2
        core = ~outer_border(label != LV) & (label == LV)
        dark += bool((image[core] < between).sum() >= 4)
    assert dark >= len(subjects) / 2


def test_blood_brightness_alone_does_not_find_the_lv(subjects: list[PhantomSubject]) -> None:
    for s in subjects:
        image, lv = s.image[..., s.ed], s.mask[..., s.ed] == LV
        found = image > np.percentile(image[lv], 10)
        assert 2 * (found & lv).sum() / (found.sum() + lv.sum()) < 0.6


def test_vendors_differ_in_spacing_matrix_and_signal() -> None:
    looks = [make_subject(4, vendor=vendor, frames=3) for vendor in VENDORS]
    assert len({s.image.shape[:2] for s in looks}) == 4
    assert len({round(float(np.linalg.norm(s.affine[:3, 0])), 3) for s in looks}) == 4
    assert len({round(float(np.linalg.norm(s.affine[:3, 2])), 3) for s in looks}) == 4
    medians = sorted(np.median(s.image[s.mask == LV]) for s in looks)
    assert all(b > 1.1 * a for a, b in pairwise(medians))
    assert (looks[2].image[0, 0] == 0).all()  # C shows a round field of view


def test_every_frame_differs_and_the_cycle_closes() -> None:
    s = make_subject(1, matrix=64, frames=8)
    heart = s.mask.any((2, 3))
    movie = s.image[heart].astype(float)  # (pixels, Z, T)
    steps = [
        abs(movie[..., t] - movie[..., t - 1]).mean() for t in range(8)
    ]  # t = 0: last to first
    assert min(steps) > 0
    assert steps[0] < 2 * max(steps[1:])


def test_codes_are_unique_and_look_like_mnms() -> None:
    codes = {_code(i, seed=3) for i in [*range(2000), *range(100_000, 102_000)]}
    assert len(codes) == 4000
    assert all(c[::2].isalpha() and c[1::2].isdigit() and len(c) == 6 for c in codes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "MnMs"
    counts = {"labelled": 4, "unlabelled": 1, "validation": 1, "testing": 1}
    assert write_mnms(folder, **counts, seed=7, matrix=32, frames=3) == folder
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / CSV_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


def test_write_mnms_writes_the_challenge_tree(written: Path) -> None:
    table = rows(written)
    header = (written / CSV_NAME).read_text().splitlines()[0]
    columns = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
    assert header == columns
    assert [row[""] for row in table] == [str(i) for i in range(7)]
    assert [row["Vendor"] for row in table] == list("ABCDAAA")
    codes = [row["External code"] for row in table]
    groups = ["Training/Labeled"] * 4 + ["Training/Unlabeled", "Validation", "Testing"]
    expected = {
        f"{group}/{code}/{code}_{suffix}.nii.gz"
        for group, code in zip(groups, codes, strict=True)
        for suffix in (["sa"] if group == "Training/Unlabeled" else ["sa", "sa_gt"])
    }
    assert {p.relative_to(written).as_posix() for p in written.rglob("*.nii.gz")} == expected


def test_written_files_hold_the_subject(written: Path) -> None:
    s, row = make_subject(2, seed=7, matrix=32, frames=3), rows(written)[2]
    assert (row["External code"], int(row["ED"]), int(row["ES"])) == (s.code, s.ed, s.es)
    assert (row["Centre"], row["Pathology"]) == (s.centre, s.pathology)
    stem = written / "Training" / "Labeled" / s.code / s.code
    for suffix, data in (("sa", s.image), ("sa_gt", s.mask)):
        nifti = nib.load(f"{stem}_{suffix}.nii.gz")
        np.testing.assert_array_equal(np.asarray(nifti.dataobj), data)
        assert nifti.get_data_dtype() == data.dtype
        np.testing.assert_allclose(nifti.affine, s.affine, atol=1e-4)
        assert nifti.header.get_zooms()[3] == pytest.approx(0.3)


def test_simpleitk_reads_every_file(written: Path) -> None:
    for path in written.rglob("*.nii.gz"):
        image = sitk.ReadImage(str(path))
        affine = nib.load(path).affine
        assert image.GetDimension() == 4
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(image.GetSpacing()[:3], spacing, rtol=1e-5)
        # ITK's coordinates are LPS: the first two axes point the other way.
        origin = np.array(image.GetOrigin()[:3]) * (-1, -1, 1)
        np.testing.assert_allclose(origin, affine[:3, 3], atol=1e-3)


def test_enlarging_one_group_leaves_the_others_alone(written: Path, tmp_path: Path) -> None:
    write_mnms(tmp_path, labelled=1, testing=1, seed=7, matrix=32, frames=3)
    before = {p.relative_to(written) for p in written.rglob("*.nii.gz")}
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*.nii.gz")} < before


@pytest.mark.parametrize(
    "argument, rule",
    [
        ({"index": -1}, r"`index` \(=-1\) must be at least 0"),
        ({"seed": -1}, r"`seed` \(=-1\) must be at least 0"),
        ({"matrix": 31}, r"`matrix` \(=31\) must be at least 32"),
        ({"frames": 1}, r"`frames` \(=1\) must be at least 2"),
        ({"slices": 0}, r"`slices` \(=0\) must be at least 3"),
        ({"slices": 2}, r"`slices` \(=2\) must be at least 3"),
        ({"vendor": "E"}, r"`vendor` \(='E'\) must be one of A, B, C, D"),
    ],
)
def test_make_subject_refuses(argument: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make_subject(**{"index": 0, **argument})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "argument, rule",
    [
        ({"labelled": 0}, r"`labelled` \(=0\) must be at least 1"),
        ({"unlabelled": -1}, r"`unlabelled` \(=-1\) must be at least 0"),
        ({"validation": -2}, r"`validation` \(=-2\) must be at least 0"),
        ({"testing": -1}, r"`testing` \(=-1\) must be at least 0"),
        ({"seed": -1}, r"`seed` \(=-1\) must be at least 0"),
        ({"matrix": 16}, r"`matrix` \(=16\) must be at least 32"),
        ({"frames": 0}, r"`frames` \(=0\) must be at least 2"),
        ({"slices": 1}, r"`slices` \(=1\) must be at least 3"),
    ],
)
def test_write_mnms_refuses_before_writing(
    argument: dict[str, int], rule: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rule):
        write_mnms(tmp_path / "new", **{"labelled": 1, **argument})
    assert not (tmp_path / "new").exists()
