from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_ssp.evaluation.dice import dice_per_class, read_label_map, score_folder

LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}

label_maps = arrays(np.uint8, (2, 3, 4), elements=st.integers(0, 3))


def naive_dice(prediction: np.ndarray, reference: np.ndarray, label: int, empty: float) -> float:
    both = either = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        both += p == label and r == label
        either += (p == label) + (r == label)
    return 2 * both / either if either else empty


def write(path: Path, label_map: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label_map.astype(np.uint8)), str(path))
    return path


@given(label_maps, label_maps)
def test_agrees_with_counting_voxel_by_voxel(prediction, reference):
    for rule, empty in (("one", 1.0), ("nan", np.nan)):
        expected = [naive_dice(prediction, reference, label, empty) for label in (1, 2, 3)]
        np.testing.assert_allclose(dice_per_class(prediction, reference, (1, 2, 3), rule), expected)


@given(label_maps, label_maps)
def test_is_symmetric_within_0_and_1_and_blind_to_order(prediction, reference):
    scores = dice_per_class(prediction, reference, (1, 2, 3))
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_array_equal(scores, dice_per_class(reference, prediction, (1, 2, 3)))
    np.testing.assert_array_equal(scores[::-1], dice_per_class(prediction, reference, (3, 2, 1)))
    flipped = dice_per_class(prediction[::-1], reference[::-1], (1, 2, 3))
    np.testing.assert_array_equal(scores, flipped)


def test_two_boxes_that_share_half_score_half():
    prediction, reference = np.zeros((2, 4, 8, 8), np.uint8)
    prediction[:, 0:4, 2:6] = 1
    reference[:, 2:6, 2:6] = 1
    assert dice_per_class(prediction, reference, [1]) == [0.5]


@pytest.mark.parametrize(("rule", "both_empty"), [("one", 1.0), ("nan", np.nan)])
def test_empty_classes(rule, both_empty):
    prediction, reference = np.array([1, 0, 0]), np.array([0, 2, 0])
    scores = dice_per_class(prediction, reference, [1, 2, 3], rule)
    np.testing.assert_array_equal(scores, [0, 0, both_empty])


def test_no_classes():
    assert dice_per_class(np.ones(3), np.ones(3), []).shape == (0,)


def test_unequal_shapes_and_unknown_rule_are_refused():
    with pytest.raises(ValueError, match=r"shape=\(2, 3\)\) must have the shape of `reference`"):
        dice_per_class(np.zeros((2, 3)), np.zeros((3, 2)), [1])
    with pytest.raises(ValueError, match=r"`empty` \(='zero'\) must be 'one' or 'nan'"):
        dice_per_class(np.zeros(3), np.zeros(3), [1], "zero")  # type: ignore[arg-type]


def test_agrees_with_monai():
    monai_metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    for highest in (2, 3):  # with 2, class 3 is in neither map
        maps = generator.integers(0, highest + 1, (2, 5, 9, 9))
        one_hot = torch.stack([torch.from_numpy(maps == label) for label in range(4)], 1).float()
        expected = monai_metrics.compute_dice(
            one_hot[:1], one_hot[1:], include_background=False, ignore_empty=False
        )
        np.testing.assert_allclose(dice_per_class(*maps, (1, 2, 3)), expected[0], rtol=1e-6)


def test_agrees_with_nnunet(tmp_path):
    evaluator = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    maps = np.random.default_rng(0).integers(0, 3, (2, 5, 9, 9))
    maps[0, maps[0] == 2] = 0  # class 2 is in one map, class 3 in neither
    prediction, reference = (
        write(tmp_path / name / "a.nii.gz", label_map)
        for name, label_map in zip(("predicted", "true"), maps, strict=True)
    )
    metrics = evaluator.compute_metrics(str(reference), str(prediction), SimpleITKIO(), [1, 2, 3])
    expected = [metrics["metrics"][label]["Dice"] for label in (1, 2, 3)]
    np.testing.assert_allclose(dice_per_class(*maps, (1, 2, 3), "nan"), expected)


@pytest.fixture
def folders(tmp_path):
    generator = np.random.default_rng(0)
    maps = {
        (kind, case): generator.integers(0, 4, (3, 6, 7))
        for kind in ("predicted", "true")
        for case in ("b_frame00", "a_frame05")
    }
    for (kind, case), label_map in maps.items():
        write(tmp_path / kind / f"{case}.nii.gz", label_map)
    (tmp_path / "predicted" / "plans.json").write_text("{}")
    return tmp_path / "predicted", tmp_path / "true", maps


def test_score_folder_gives_one_row_per_case_and_class(folders):
    predicted, true, maps = folders
    write(predicted / "stranger.nii.gz", np.zeros((3, 6, 7)))
    table = score_folder(predicted, true, LABELS)
    assert list(table.columns) == ["case", "class", "dice"]
    assert table["case"].tolist() == ["a_frame05"] * 3 + ["b_frame00"] * 3
    assert table["class"].tolist() == ["LV", "MYO", "RV"] * 2
    for case, own in table.groupby("case"):
        expected = dice_per_class(maps["predicted", case], maps["true", case], (1, 2, 3))
        np.testing.assert_array_equal(own["dice"], expected)


def test_score_folder_scores_only_the_cases_asked_for(folders):
    predicted, true, _ = folders
    (predicted / "b_frame00.nii.gz").unlink()
    table = score_folder(predicted, true, {"RV": 3}, cases=["a_frame05"])
    assert table[["case", "class"]].to_numpy().tolist() == [["a_frame05", "RV"]]


def test_score_folder_hands_on_the_rule_for_empty_classes(folders):
    predicted, true, _ = folders
    assert score_folder(predicted, true, {"none": 9})["dice"].tolist() == [1, 1]
    assert score_folder(predicted, true, {"none": 9}, empty="nan")["dice"].isna().all()


def test_missing_cases_are_named(folders):
    predicted, true, _ = folders
    (predicted / "b_frame00.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"predicted has no file for 1 case: b_frame00\."):
        score_folder(predicted, true, LABELS)
    with pytest.raises(FileNotFoundError, match=r"true has no file for 1 case: other\."):
        score_folder(predicted, true, LABELS, cases=["other"])
    many = [f"c{i:02d}" for i in range(12)]
    with pytest.raises(FileNotFoundError, match=r"12 cases: c00, .*, c09 and 2 more\."):
        score_folder(predicted, true, LABELS, cases=many)


def test_unequal_shapes_of_files_are_named(folders):
    predicted, true, _ = folders
    write(predicted / "a_frame05.nii.gz", np.zeros((3, 7, 6)))
    message = r"predicted.a_frame05\.nii\.gz \(shape=\(3, 7, 6\)\) must have the shape of .*true"
    with pytest.raises(ValueError, match=message):
        score_folder(predicted, true, LABELS)


def test_unreadable_files_are_named(folders):
    predicted, true, _ = folders
    file = true / "a_frame05.nii.gz"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"true.a_frame05\.nii\.gz cannot be read as an image"):
        score_folder(predicted, true, LABELS)
    with pytest.raises(ValueError, match=r"nothing\.nii\.gz cannot be read as an image"):
        read_label_map(true / "nothing.nii.gz")


def test_missing_and_empty_folders_are_named(folders, tmp_path):
    predicted, true, _ = folders
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder\."):
        score_folder(tmp_path / "nowhere", true, LABELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no \.nii\.gz file\."):
        score_folder(predicted, tmp_path / "empty", LABELS)
    with pytest.raises(FileNotFoundError, match=r"predicted holds no \.nrrd file\."):
        score_folder(predicted, true, LABELS, file_ending=".nrrd")
