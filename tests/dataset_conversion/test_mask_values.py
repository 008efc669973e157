"""Values of own masks: other numberings are told from the right one, and converted."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.dataset_conversion.mask_values import (
    check_values,
    chosen_subjects,
    in_words,
    rule_of_values,
    to_classes,
    warn_of_numbering,
)
from nnunet_ssp.files.nifti import read_image
from tests.evaluation.conftest import heart

NAMES = ("LVBP", "LVM", "RV")
RIGHT = (1, 2, 3)
TASK = CineTask("A", "train", (), (), (), Path("A"), NAMES, (), "")


def stack(numbers: tuple[int, ...] = RIGHT) -> np.ndarray:
    """A heart, slices last, whose LV, MYO and RV have these numbers; the basal slice's ring is open."""
    mask = np.moveaxis(heart(), 0, -1)
    basal = mask[..., 1]
    basal[:18][basal[:18] == 2] = 0
    return np.array([0, *numbers], np.uint8)[mask]


def test_the_rule_in_words():
    assert in_words(NAMES) == "1 = LV, 2 = MYO, 3 = RV"
    assert in_words(("RV", "scar"), (7, 9)) == "7 = RV, 9 = scar"
    assert rule_of_values(NAMES).startswith("Values of the masks: 1 = LV, 2 = MYO, 3 = RV. ")
    assert rule_of_values(NAMES, (3, 2, 1), 2).startswith(
        "Values of the masks: 1 = LV, 2 = MYO, 3 = RV; 3 = LV, 2 = MYO, 1 = RV in the 2 subjects of --label-values-for."
    )


def test_subjects_are_chosen_by_their_names_here_or_beside_other_sources():
    known = ["p1", "p2", "cine-p2"]
    assert chosen_subjects(["p1", "cine-p1", "cine-p2"], known, (3, 2, 1), "cine-") == {
        "p1",
        "cine-p2",
    }
    assert chosen_subjects([], known, (), "cine-") == set()
    with pytest.raises(ValueError, match=r"\(=p3\) must name subjects, as --dry-run lists them"):
        chosen_subjects(["cine-p3"], known, (3, 2, 1), "cine-")


@pytest.mark.parametrize("values", [(1, 2), (1, 2, 2), (0, 1, 2), (1, 2, 65536)])
def test_as_many_values_as_names_each_once(values: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"`--label-values` .* must be 3 different whole numbers"):
        check_values(values, NAMES)
    check_values((85, 170, 65535), NAMES)


@pytest.mark.parametrize("values", [(3, 2, 1), (85, 170, 255), (500, 205, 600)])
def test_values_of_the_masks_become_those_of_the_dataset(values: tuple[int, ...]):
    mask = np.array([0, *values], np.int32)[stack()]
    found = to_classes(mask, Path("a"), replace(TASK, label_values=values))
    assert found.dtype == np.uint8 and np.array_equal(found, stack())


def test_a_value_that_is_none_of_a_label_is_refused_with_the_remedy():
    mask = np.array([0, 85, 170, 255], np.uint8)[stack()]
    with pytest.raises(ValueError) as caught:
        to_classes(mask, Path("a"), TASK)
    assert str(caught.value) == (
        "a: mask values (=85, 170, 255) must be among [0, 1, 2, 3]. They are 1 = LV, 2 = MYO, 3 = RV. If the masks "
        "have other values, --label-values V V V names those of LV, MYO, RV."
    )
    with pytest.raises(ValueError, match=r"\(=1, 2\) must be among \[0, 3, 5, 7\]"):
        to_classes(stack((1, 2, 7)), Path("a"), replace(TASK, label_values=(5, 3, 7)))


@pytest.mark.parametrize("numbers", sorted({*permutations(RIGHT)} - {RIGHT}))
def test_each_wrong_order_is_warned_of_with_the_right_one(numbers: tuple[int, ...]):
    """The option that the warning names converts the masks rightly, and is not warned of."""
    wrong = stack(numbers)
    (said,) = warn_of_numbering([wrong], TASK)
    option = f"--label-values {' '.join(map(str, numbers))}, for {in_words(NAMES, numbers)}."
    assert said.startswith("label 1 is taken for LV and label 2 for MYO, but MYO does not enclose")
    assert f"{option} Where other subjects' masks are right: also --label-values-for" in said
    task = replace(TASK, label_values=numbers)
    mended = to_classes(wrong, Path("a"), task)
    assert np.array_equal(mended, stack())
    assert warn_of_numbering([mended], task) == []


def test_a_wrong_option_is_warned_of_in_the_values_of_the_masks():
    task = replace(TASK, label_values=(255, 170, 85))
    mask = to_classes(np.array([0, 85, 170, 255], np.uint8)[stack()], Path("a"), task)
    (said,) = warn_of_numbering([mask], task)
    assert "label 255 is taken for LV" in said
    right = "convert with --label-values 85 170 255, for 85 = LV, 170 = MYO, 255 = RV."
    assert f"Label 85 lies in label 170 as LV in MYO: if that is so in your masks, {right}" in said


def test_where_the_option_is_wrong_for_some_it_is_to_name_the_others():
    (said,) = warn_of_numbering(
        [to_classes(stack(), Path("a"), replace(TASK, label_values=(3, 2, 1)))],
        replace(TASK, label_values=(3, 2, 1)),
    )
    assert said.endswith("need no --label-values: name the others with --label-values-for.")


@pytest.mark.parametrize(("number", "name"), [(2, "MYO"), (3, "RV")])
def test_masks_without_lv_are_warned_of(number: int, name: str):
    """LV alone, called by another number than in the other subjects."""
    (said,) = warn_of_numbering([np.uint8(number) * (stack() == 1), 0 * stack()], TASK)
    assert said.startswith(f"no label 1, which is taken for LV, only {number} = {name}: are the")
    assert "--label-values-for and the names of these subjects." in said
    assert warn_of_numbering([0 * stack()], TASK) == []


def test_what_cannot_be_told_is_not_warned_of():
    right = stack()
    without_rv = right * (right < 3)
    without_myo = right * (right != 2)
    assert warn_of_numbering([right, without_rv, without_myo], TASK) == []
    assert warn_of_numbering([without_myo], TASK) == []
    assert warn_of_numbering([stack((3, 2, 1))], replace(TASK, label_names=("a", "b", "c"))) == []
    few = np.zeros((9, 9, 1), np.uint8)
    few[2:5, 2, 0], few[2:5, 5, 0] = 1, 2
    assert warn_of_numbering([few], TASK) == []


def test_without_rv_the_two_are_told_apart():
    swapped = np.array([0, 2, 1, 0], np.uint8)[stack()]
    (said,) = warn_of_numbering([swapped], replace(TASK, label_names=NAMES[:2]))
    assert "convert with --label-values 2 1, for 2 = LV, 1 = MYO. Where other" in said


def test_two_parts_of_rv_are_left_to_the_user():
    swapped = np.array([0, 3, 2, 1], np.uint8)[stack()]
    (said,) = warn_of_numbering([swapped], replace(TASK, label_names=(*NAMES, "RVBP")))
    assert said.endswith(
        "Label 3 lies in label 2 as LV in MYO. Look at them. --label-values names the values of each structure."
    )


def test_no_real_mask_is_warned_of_and_each_swapped_one_is(real_data: Path):
    """ACDC's own order is the one with LV and RV swapped."""
    to_ours = np.array([0, 3, 2, 1], np.uint8)
    files = sorted((real_data / "acdc60").rglob("*_gt.nii*"))[::8]
    assert len(files) >= 15
    for file in files:
        mask = read_image(file).voxels.astype(np.uint8)
        assert warn_of_numbering([to_ours[mask]], TASK) == []
        (said,) = warn_of_numbering([mask], TASK)
        assert "--label-values 3 2 1," in said
    for file in sorted((real_data / "sunnybrook_mnms").rglob("*_gt.nii*")):
        cine = np.moveaxis(read_image(file).voxels.astype(np.uint8), -1, 0)
        assert warn_of_numbering([mask for mask in cine if mask.any()], TASK) == []
