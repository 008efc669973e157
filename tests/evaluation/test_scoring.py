from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.evaluation.files import read_label_map
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.scoring import joint_counts, relative_positions, score_pair, score_pairs
from tests.evaluation.conftest import SPACING, heart, write_pair

LABELS = Labels({"LV": (1,), "MYO": (2,), "RV": (3,)})
VOXEL_ML = 8 * 1.5 * 2 / 1000


def score(folder, prediction, reference, labels=LABELS):
    frames, slices = score_pair(write_pair(folder, prediction, reference), labels)
    return {row["class"]: row for row in frames}, slices


def test_volumes_are_those_of_the_voxels(tmp_path):
    prediction, reference = heart(9), heart(8)
    frames, _ = score(tmp_path, prediction, reference)
    for name, value in (("LV", 1), ("MYO", 2), ("RV", 3)):
        assert frames[name]["predicted_ml"] == pytest.approx((prediction == value).sum() * VOXEL_ML)
        assert frames[name]["reference_ml"] == pytest.approx((reference == value).sum() * VOXEL_ML)


def test_distances_are_in_the_spacing_of_the_file(tmp_path):
    one, other = np.zeros((2, *heart().shape), np.uint8)
    one[1, 10:20, 10:20], other[2, 10:20, 10:20] = 1, 1
    frames, _ = score(tmp_path, one, other)
    assert (frames["LV"]["hd95_mm"], frames["LV"]["assd_mm"]) == (SPACING[0], SPACING[0])


def test_classes_that_one_or_both_lack(tmp_path):
    prediction, reference = heart(), heart()
    prediction[prediction == 1] = 0
    reference[reference > 1] = 0
    prediction[prediction == 2] = 0
    frames, _ = score(tmp_path, prediction, reference)
    found = {
        name: [row["dice"], row["dice_nan"], row["missed"], row["hd95_mm"], row["assd_mm"]]
        for name, row in frames.items()
    }
    nan = np.nan
    np.testing.assert_array_equal(found["LV"], [0, 0, 1, nan, nan])  # only in the reference
    np.testing.assert_array_equal(found["MYO"], [1, nan, 0, nan, nan])  # in neither
    np.testing.assert_array_equal(found["RV"], [0, 0, 1, nan, nan])  # only in the prediction


def test_regions_are_unions_and_ignored_voxels_count_nowhere_as_in_nnunet(tmp_path):
    evaluator = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    generator = np.random.default_rng(0)
    prediction, reference = generator.integers(0, 4, (2, 5, 9, 9)).astype(np.uint8)
    prediction[prediction == 3] = 0
    for ignore in (None, 4):
        if ignore:
            reference[:, :4] = ignore
        labels = Labels({"heart": (1, 2, 3), "LV": (1,), "RV": (3,)}, ignore=ignore)
        pair = write_pair(tmp_path, prediction, reference)
        rows, _ = score_pair(pair, labels)
        regions = [(1, 2, 3), 1, 3]
        expected = evaluator.compute_metrics(
            str(pair.reference), str(pair.prediction), SimpleITKIO(), regions, ignore
        )["metrics"]
        for row, region in zip(rows, regions, strict=True):
            assert row["dice_nan"] == pytest.approx(expected[region]["Dice"], nan_ok=True)
            count = expected[region]["n_ref"] * VOXEL_ML
            assert row["reference_ml"] == pytest.approx(count)
    assert "ignore" not in {row["class"] for row in rows}


def test_agrees_with_nnunet_where_classes_are_empty(tmp_path):
    evaluator = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    maps = np.random.default_rng(0).integers(0, 3, (2, 5, 9, 9)).astype(np.uint8)
    maps[0, maps[0] == 2] = 0  # MYO is in one map, RV in neither
    pair = write_pair(tmp_path, *maps)
    metrics = evaluator.compute_metrics(
        str(pair.reference), str(pair.prediction), SimpleITKIO(), [1, 2, 3]
    )["metrics"]
    rows, _ = score_pair(pair, LABELS)
    expected = [metrics[label]["Dice"] for label in (1, 2, 3)]
    np.testing.assert_allclose([row["dice_nan"] for row in rows], expected)


def test_values_that_are_no_label_are_refused(tmp_path):
    prediction, reference = heart(), heart()
    reference[0, 0, 0] = 7
    message = r"true.a\.nii\.gz: mask values \(=7\) must be among \[0, 1, 2, 3\]"
    with pytest.raises(ValueError, match=message):
        score(tmp_path, prediction, reference)
    with pytest.raises(ValueError, match=r"predicted.a\.nii\.gz: mask values \(=7\)"):
        score(tmp_path, reference, prediction)


@pytest.mark.parametrize("header", [np.uint8, np.int16])
@pytest.mark.parametrize("side", ["predicted", "true"])
def test_masks_under_a_scaled_header_follow_the_rule_of_the_converters(tmp_path, header, side):
    """nibabel scales floating point into the range of an integer header: 1 reads as 0.996 or as 1.00002."""
    maps = {"predicted": heart(), "true": heart()}
    for array in maps.values():
        array[array == 3] = 0  # 255 or 65535 steps are shared by two classes
    pair = write_pair(tmp_path, maps["predicted"], maps["true"])
    file = pair.prediction if side == "predicted" else pair.reference
    plain = nibabel.load(file)
    scaled = plain.header.copy()
    scaled.set_data_dtype(header)
    nibabel.save(nibabel.Nifti1Image(plain.get_fdata(), plain.affine, scaled), file)
    read = np.unique(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))))
    assert 1 not in read and len(read) == 3
    if header is np.uint8:
        with pytest.raises(
            ValueError, match=rf"{side}.*a.nii.gz: .*whole numbers, not 0.996078; save"
        ):
            score_pair(pair, LABELS)
    else:
        rows, _ = score_pair(pair, LABELS)
        assert [row["dice"] for row in rows] == [1, 1, 1]
        np.testing.assert_array_equal(np.unique(read_label_map(file)), [0, 1, 2])


def test_labels_above_a_byte_stay_what_they_are(tmp_path):
    labels = Labels({"a": (1,), "b": (257,)})
    reference = np.zeros((3, 8, 8), np.int16)
    reference[1, 2:6, 2:6] = 257
    rows, _ = score_pair(write_pair(tmp_path, reference, reference), labels)
    assert [row["reference_ml"] > 0 for row in rows] == [False, True]


def test_slices_are_those_from_the_first_to_the_last_with_a_reference_label(tmp_path):
    prediction, reference = heart(), heart()
    reference[2] = 0  # a gap between slices 1 and 4 stays
    prediction[0] = 1  # beyond the reference
    prediction[3] = 0
    _, slices = score(tmp_path, prediction, reference)
    lv = [row for row in slices if row["class"] == "LV"]
    assert [row["slice"] for row in lv] == [1, 2, 3, 4]
    np.testing.assert_allclose([row["position"] for row in lv], [0, 1 / 3, 2 / 3, 1])
    assert [row["dice"] for row in lv] == [1, 0, 0, 1]


def test_pairs_of_labels_are_counted_by_slice():
    prediction, reference = np.random.default_rng(0).choice([0, 2, 300], (2, 3, 4, 5))
    counts = joint_counts(prediction, reference, [0, 2, 300])
    for z in range(3):
        for i, predicted in enumerate((0, 2, 300)):
            for j, true in enumerate((0, 2, 300)):
                expected = ((prediction[z] == predicted) & (reference[z] == true)).sum()
                assert counts[z, i, j] == expected


def test_scores_are_blind_to_the_space_around_and_to_empty_maps(tmp_path):
    prediction, reference = heart(9), heart(8)
    inner = score(tmp_path, prediction, reference)
    widened = [np.pad(m, ((0, 0), (4, 7), (5, 3))) for m in (prediction, reference)]
    assert score(tmp_path, *widened) == inner
    empty, _ = score(tmp_path, np.zeros_like(reference), np.zeros_like(reference))
    assert [row["dice"] for row in empty.values()] == [1, 1, 1]
    assert [row["missed"] for row in empty.values()] == [0, 0, 0]


def test_positions_of_short_stacks():
    stack = np.zeros((4, 2, 2))
    assert relative_positions(stack) == (0, [])
    stack[2] = 1
    assert relative_positions(stack) == (2, [0.5])


def test_without_any_label_the_tables_have_their_columns(tmp_path):
    labelled, empty = heart(), np.zeros_like(heart())
    some = score_pairs([write_pair(tmp_path / "some", labelled, labelled)], LABELS)
    none = score_pairs([write_pair(tmp_path / "none", labelled, empty)], LABELS)
    assert none.slices.empty
    assert list(none.slices.columns) == list(some.slices.columns)


def test_pairs_keep_their_order_with_several_workers(tmp_path):
    pairs = [write_pair(tmp_path / str(i), heart(7 + i), heart(9)) for i in range(3)]
    one, two = (score_pairs(pairs, LABELS, workers) for workers in (1, 2))
    for table, same in zip(one, two, strict=True):
        assert table.equals(same)
    assert one.frames["dice"].groupby(one.frames.index // 3).mean().is_monotonic_increasing
    assert len(one.slices) == 3 * 4 * 3
