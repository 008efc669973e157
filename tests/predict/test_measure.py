"""Metrics of true masks against the phantom's formulas and volumes counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.phantom import make_subject
from nnunet_ssp.predict.measure import Choices, measure

LABELS = Labels(
    {"cavity": (1,), "wall": (2,), "right": (3,)},
    structures={"LV": "cavity", "MYO": "wall", "RV": "right"},
)
SPACING = (2.0, 2.5, 10.0)  # 0.05 ml


def mask(*volumes: tuple[int, int, int], slices: int = 2) -> np.ndarray:
    """Frames with these numbers of voxels of LV, myocardium and RV in each slice."""
    frames = np.zeros((20, 20, slices, len(volumes)), np.uint8)
    for t, counts in enumerate(volumes):
        values = np.repeat([1, 2, 3], counts)
        for z in range(slices):
            frames[..., z, t].flat[: len(values)] = values
    return frames


BEAT = [(100, 80, 90), (90, 80, 80), (60, 80, 60), (40, 81, 50), (50, 80, 55), (80, 80, 70)]


def test_figures_of_a_beat_counted_by_hand() -> None:
    found = measure(mask(*BEAT), SPACING, LABELS)
    assert found.subject == {
        "n_frames": 6,
        "n_slices": 2,
        "ed_frame": 0,
        "es_frame": 3,
        "lv_edv_ml": pytest.approx(10),
        "lv_esv_ml": pytest.approx(4),
        "lv_sv_ml": pytest.approx(6),
        "lv_ef_percent": pytest.approx(60),
        "lv_mass_g": pytest.approx(8 * 1.05),
        "rv_edv_ml": pytest.approx(9),
        "rv_esv_ml": pytest.approx(5),
        "rv_sv_ml": pytest.approx(4),
        "rv_ef_percent": pytest.approx(400 / 9),
        "sv_difference_ml": pytest.approx(2),
    }
    assert found.frames["lv_ml"] == pytest.approx([10, 9, 6, 4, 5, 8])
    assert found.frames["lv_mass_g"] == pytest.approx(np.array(found.frames["myo_ml"]) * 1.05)


def test_known_frames_are_taken() -> None:
    found = measure(mask(*BEAT), SPACING, LABELS, Choices((1, 4))).subject
    assert (found["ed_frame"], found["es_frame"]) == (1, 4)
    assert found["lv_ef_percent"] == pytest.approx(100 * 4 / 9)
    with pytest.raises(ValueError, match=r"`--frames` \(=0 6\) must be within 0 to 5"):
        measure(mask(*BEAT), SPACING, LABELS, Choices((0, 6)))


def test_a_fixed_base_counts_the_slices_of_both_phases() -> None:
    frames = mask(*BEAT, slices=3)
    frames[:, :, 0, 2:5][frames[:, :, 0, 2:5] == 1] = 0  # the valve plane descends
    assert measure(frames, SPACING, LABELS).subject["lv_edv_ml"] == pytest.approx(15)
    fixed = measure(frames, SPACING, LABELS, Choices(fixed_base=True))
    assert fixed.subject["lv_edv_ml"] == pytest.approx(10)
    assert fixed.subject["lv_esv_ml"] == pytest.approx(4)
    assert fixed.frames["rv_ml"][0] == pytest.approx(9)


def test_a_hole_does_not_shorten_a_fixed_extent() -> None:
    frames = mask(*BEAT, slices=3)
    frames[:, :, 1, 3][frames[:, :, 1, 3] == 1] = 0
    fixed = measure(frames, SPACING, LABELS, Choices(fixed_base=True)).subject
    assert fixed["es_frame"] == 3
    assert fixed["lv_edv_ml"] == pytest.approx(15)
    assert fixed["lv_esv_ml"] == pytest.approx(4)


def test_without_a_shared_slice_a_fixed_extent_is_empty() -> None:
    frames = mask(*BEAT, slices=3)
    frames[..., 3][frames[..., 3] == 1] = 0
    fixed = measure(frames, SPACING, LABELS, Choices((0, 3), fixed_base=True)).subject
    assert fixed["lv_edv_ml"] == fixed["lv_esv_ml"] == 0
    assert "lv_ef_percent" not in fixed


def test_one_frame_has_volumes_only() -> None:
    found = measure(mask(BEAT[0]), SPACING, LABELS).subject
    assert found["lv_edv_ml"] == pytest.approx(10)
    assert not {"es_frame", "lv_esv_ml", "lv_sv_ml", "lv_ef_percent", "rv_sv_ml"} & found.keys()


def test_without_lv_no_frame_is_end_systole() -> None:
    """An RV that beats alone has no EF, as ED and ES are the LV's; the flag says why, and none speaks of ES."""
    found = measure(mask(*((0, 0, rv) for _, _, rv in BEAT)), SPACING, LABELS)
    assert found.subject["ed_frame"] == 0 and "es_frame" not in found.subject
    assert found.subject["rv_edv_ml"] == pytest.approx(9)
    assert not {"rv_ef_percent", "rv_esv_ml", "lv_ef_percent"} & found.subject.keys()
    assert "no LV" in found.flags and "edge" not in found.flags


def test_a_missing_class_has_no_columns_and_an_empty_one_no_ef() -> None:
    only = Labels({"cavity": (1,)}, structures={"LV": "cavity"})
    found = measure(mask(*BEAT), SPACING, only)
    assert found.frames.keys() == {"lv_ml"}
    assert not [name for name in found.subject if name.startswith("rv") or "mass" in name]
    empty = measure(np.zeros((4, 4, 3, 4), np.uint8), SPACING, LABELS).subject
    assert empty["lv_edv_ml"] == 0
    assert "lv_ef_percent" not in empty


def test_a_region_is_the_union_of_its_values() -> None:
    regions = Labels({"cavity": (1, 4)}, structures={"LV": "cavity"})
    frames = mask(*BEAT)
    frames[:5][frames[:5] == 1] = 4
    assert measure(frames, SPACING, regions).frames["lv_ml"] == pytest.approx([10, 9, 6, 4, 5, 8])


@pytest.mark.parametrize("index", range(4))
def test_true_masks_of_the_phantom_give_its_true_metrics(index: int) -> None:
    """Within 1 % of the formulas' volumes in the same slices, with the exact frames."""
    subject = make_subject(index, seed=2, matrix=192, frames=10)
    spacing = np.linalg.norm(subject.affine[:3, :3], axis=0)
    found = measure(subject.labels, spacing, LABELS)
    assert (found.subject["ed_frame"], found.subject["es_frame"]) == (subject.ed, subject.es)
    for curve, column in zip(subject.volumes, ("lv_ml", "myo_ml", "rv_ml"), strict=True):
        np.testing.assert_allclose(found.frames[column], curve, rtol=0.01)
    edv, esv = subject.volumes[0, [subject.ed, subject.es]]
    assert found.subject["lv_ef_percent"] == pytest.approx(100 * (1 - esv / edv), abs=0.5)
