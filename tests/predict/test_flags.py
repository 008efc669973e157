"""Each flag is raised by what breaks its rule alone, and no flag by masks that are true."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.phantom import make_subject
from nnunet_ssp.predict.flags import FLAGS
from nnunet_ssp.predict.measure import Choices, measure

SPACING = (1.5, 1.5, 8.0)
NAMES = ("LV", "MYO", "RV")


def labels(**values: int) -> Labels:
    return Labels({n: (v,) for n, v in values.items()}, structures={n: n for n in values})


ALL = labels(LV=1, MYO=2, RV=3)


def heart(n_slices: int = 9, n_frames: int = 20) -> np.ndarray:
    """A round heart that beats, tapering to the apex; the first slice is above the base."""
    x, y = np.meshgrid(np.arange(64) - 36, np.arange(64) - 32, indexing="ij")
    beat = np.sin(np.pi * np.arange(n_frames) / n_frames) ** 2  # ES in the middle
    taper = np.sqrt(np.clip(1 - (np.arange(n_slices) - 1) / (n_slices - 2), 0, 1)) * 14
    taper[0] = 0
    lv_radius = taper[:, None] * (1 - 0.28 * beat)
    rho = np.hypot(x, y)[..., None, None]
    rv = np.hypot(x + 22, y)[..., None, None]
    mask = np.where(rv < 0.9 * lv_radius, 3, 0)
    mask = np.where(rho < np.where(lv_radius > 0, lv_radius + 4, 0), 2, mask)
    return np.where(rho < lv_radius, 1, mask).astype(np.uint8)


def flags(mask: np.ndarray, spacing: tuple[float, ...] = SPACING, **options: object) -> list[str]:
    return sorted(measure(mask, spacing, ALL, **options).flags)


def test_a_sound_heart_raises_none() -> None:
    assert flags(heart()) == []


ES = 10


def no_lv(mask: np.ndarray) -> np.ndarray:
    mask[:, :, 3:] = 0
    return mask


def hole(mask: np.ndarray) -> np.ndarray:
    mask[:, :, 6] = 0
    return mask


def pieces(mask: np.ndarray) -> np.ndarray:
    mask[2:20, 48:62, 2:5] = 3
    return mask


def open_ring(mask: np.ndarray) -> np.ndarray:
    myo = mask == 2
    mask[myo] = 0
    moved = np.roll(myo, 12, axis=0)
    mask[moved & (mask == 0)] = 2
    return mask


def jump(mask: np.ndarray) -> np.ndarray:
    mask[..., 5:8] = mask[..., 10:11]
    return mask


def two_minima(mask: np.ndarray) -> np.ndarray:
    return mask[..., [0, 3, 5, 7, 8, 7, 5, 4, 4, 5, 7, 9, 10, 10, 11, 12, 14, 16, 18, 19]]


def low_ef(mask: np.ndarray) -> np.ndarray:
    return mask[..., [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0]]


def edge(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask, -ES, axis=3)


def strokes(mask: np.ndarray) -> np.ndarray:
    right = mask[..., :1] == 3
    mask[np.broadcast_to(right, mask.shape) & (mask == 0)] = 3
    return mask


def cover(mask: np.ndarray) -> np.ndarray:
    mask = mask[:, :, 1:7]
    mask[:, :, 5] = mask[:, :, 0]
    return mask


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("no LV", no_lv),
        ("hole", hole),
        ("pieces", pieces),
        ("open ring", open_ring),
        ("jump", jump),
        ("two minima", two_minima),
        ("edge", edge),
        ("stroke volumes", strokes),
        ("cover", cover),
    ],
)
def test_each_flag_is_raised_by_its_fault_alone(name: str, damage) -> None:
    assert flags(damage(heart())) == [name]


def test_an_ef_that_no_heart_has() -> None:
    """Without RV, whose small stroke volume is another fault."""
    assert [*measure(low_ef(heart()), SPACING, labels(LV=1, MYO=2)).flags] == ["EF"]


def test_an_lv_that_is_lost_in_some_frames() -> None:
    mask = heart()
    mask[:, :, 3:, ES - 2 : ES + 3][mask[:, :, 3:, ES - 2 : ES + 3] == 1] = 0
    assert flags(mask) == ["jump", "no LV", "stroke volumes"]


@pytest.mark.parametrize("reverse", [1, -1])
def test_a_stack_that_ends_within_the_heart(reverse: int) -> None:
    tapered = heart()[:, :, 1:]  # from the base on
    assert flags(tapered[:, :, ::reverse]) == []
    # A stack from the middle to the base and beyond the apex's side of nothing: the end is the widest.
    cut = np.concatenate([tapered[:, :, 4:], tapered[:, :, :1]], axis=2)
    assert "cover" in flags(cut[:, :, ::reverse])


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 25.0), (0.1, 0.1, 8.0), (1.5, 4.5, 8.0)])
def test_an_implausible_spacing(spacing: tuple[float, ...]) -> None:
    assert flags(heart(), spacing) == ["spacing"]


def test_a_volume_that_no_heart_has() -> None:
    """With a spacing that a scanner may have."""
    found = measure(heart().repeat(2, 0).repeat(2, 1), (3.5, 3.5, 16.0), ALL).flags
    assert list(found) == ["volume"]
    assert re.match(r"LV of \d{4} ml at ED", found["volume"])


def test_an_unknown_spacing() -> None:
    found = measure(heart(), SPACING, ALL, spacing_known=False).flags
    assert found == {"spacing": "not in the header"}


def test_a_flag_needs_its_classes() -> None:
    mask = heart()
    mask[mask == 2] = 0
    assert flags(mask) == ["open ring"]
    assert measure(mask, SPACING, labels(LV=1, RV=3)).flags == {}


def test_one_frame_has_no_curve() -> None:
    assert flags(heart()[..., :1]) == []


def test_every_flag_says_its_rule_in_words() -> None:
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)
    assert all(len(flag.rule) > 20 and not flag.rule.endswith(".") for flag in FLAGS)


@pytest.mark.parametrize("part", range(4))
def test_true_masks_of_the_phantom_raise_none(part: int) -> None:
    for index in range(25 * part, 25 * part + 25):
        subject = make_subject(index, seed=5, matrix=64, frames=8)
        spacing = np.linalg.norm(subject.affine[:3, :3], axis=0)
        assert measure(subject.labels, spacing, ALL).flags == {}, index


def test_at_most_one_in_ten_real_subjects_raises_a_flag(real_data: Path) -> None:
    counts: dict[str, int] = {}
    acdc = labels(RV=1, MYO=2, LV=3)
    folders = sorted((real_data / "acdc60" / "training").iterdir())
    for folder in folders:
        images = [nibabel.load(file) for file in sorted(folder.glob("*_gt.nii.gz"))]
        mask = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
        zooms = tuple(float(edge) for edge in images[0].header.get_zooms()[:3])
        for name in measure(mask, zooms, acdc, Choices((0, 1))).flags:
            counts[name] = counts.get(name, 0) + 1
    assert len(folders) == 60
    assert max(counts.values(), default=0) <= 6, counts
    for file in sorted((real_data / "sunnybrook_mnms").rglob("*_gt.nii.gz")):
        image = nibabel.load(file)
        mask = np.asarray(image.dataobj)
        mask = mask[..., mask.any(axis=(0, 1, 2))]
        sizes = (mask == 1).sum(axis=(0, 1, 2))
        known = Choices((int(sizes.argmax()), int(sizes.argmin())))
        zooms = tuple(float(edge) for edge in image.header.get_zooms()[:3])
        assert measure(mask, zooms, labels(LV=1), known).flags == {}, file.name
