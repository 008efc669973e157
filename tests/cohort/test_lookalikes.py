from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, rotate, zoom

from nnunet_ssp.cohort.lookalikes import (
    DIFFERENT_HEARTS,
    ONE_HEART,
    SAME,
    SHAPE,
    SUSPECT,
    fingerprint,
    look_alikes,
    similarity,
)

Array = NDArray[np.floating]


SPACING = (6.0, 6.0)  # mm; of pictures


def picture(seed: int, shape: tuple[int, int, int] = (60, 72, 9)) -> Array:
    """A smooth random stack, positive everywhere."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = gaussian_filter(noise, (3, 3, 1))
    return 100 + 50 * smooth / smooth.std() - min(0, smooth.min()) * 400


def alike(
    first: Array, second: Array, spacing: tuple[float, float] = SPACING, factor: float = 1
) -> float:
    other = (spacing[0] * factor, spacing[1] * factor)
    return float(
        similarity(fingerprint(first, spacing)[None], fingerprint(second, other)[None])[0, 0]
    )


def cropped(voxels: Array, part: float) -> Array:
    x, y = (round(part * size) for size in voxels.shape[:2])
    return voxels[x : voxels.shape[0] - x, y : voxels.shape[1] - y]


def padded_with_noise(voxels: Array) -> Array:
    noise = np.random.default_rng(0).integers(0, 2, np.add(voxels.shape, (23, 31, 0)))
    noise = noise.astype(np.float32)
    noise[20:-3, :-31] = voxels
    return noise


# What one and the same frame looks like in another source.
COPIES: dict[str, Callable[[Array], Array]] = {
    "flip": lambda v: v[::-1],
    "transpose": lambda v: v.swapaxes(0, 1),
    "turned": lambda v: np.rot90(v)[..., ::-1],
    "padded": lambda v: np.pad(v, ((20, 3), (0, 31), (1, 2))),
    "padded, then offset": lambda v: np.pad(v, ((20, 3), (0, 31), (0, 0))) + 1,
    "padded with noise": padded_with_noise,
    "rescaled": lambda v: 3.7 * v,
    "clipped": lambda v: np.minimum(v, np.percentile(v, 95)),
    "gamma 2": lambda v: v**2 / v.max(),
    "gamma 0.5": lambda v: np.sqrt(np.maximum(v, 0) * v.max()),
    "shaded": lambda v: v * np.linspace(0.5, 1.5, v.shape[0])[:, None, None],
    "cropped by 3 %": lambda v: cropped(v, 0.03),
    "cropped by 6 %": lambda v: cropped(v, 0.06),
    "without the first two slices": lambda v: v[..., 2:],
    "without the last two slices": lambda v: v[..., :-2],
    "without both ends": lambda v: v[..., 1:-1],
    "rotated by 5 degrees": lambda v: rotate(v, 5, reshape=False, order=1),
    "finer, same spacing": lambda v: zoom(v, (1.2, 1.2, 1), order=1),
    "coarser, same spacing": lambda v: zoom(v, (0.8, 0.8, 1), order=1),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_recognised_and_another_picture_is_not(copy: str):
    assert alike(picture(0), COPIES[copy](picture(0))) > SAME
    assert alike(picture(0), COPIES[copy](picture(1))) < SUSPECT


@pytest.mark.parametrize("part", [0, 0.1])
def test_the_spacing_is_accounted_for(part: float):
    """A crop changes the width of the image, so only the scale in mm can tell."""
    finer = zoom(cropped(picture(0), part), (1.5, 1.5, 1), order=1)
    assert alike(picture(0), finer, factor=1 / 1.5) > SAME


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 9))
def test_no_orientation_and_no_zero_border_matters(
    seed: int, turns: int, transposed: bool, reverse: bool, border: int
):
    voxels = picture(seed, (60, 60, 6))
    moved = np.rot90(voxels, turns)
    moved = moved.swapaxes(0, 1) if transposed else moved
    moved = np.pad(
        moved[..., ::-1] if reverse else moved, ((border, border), (border, border), (0, 0))
    )
    assert alike(voxels, moved) > 0.98


def test_similarity_is_symmetric_and_one_for_equal_images():
    grids = np.stack([fingerprint(picture(seed), SPACING) for seed in range(4)])
    table = similarity(grids, grids)
    np.testing.assert_allclose(table, table.T, atol=1e-5)
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-4)
    assert table[~np.eye(4, dtype=bool)].max() < SUSPECT


@pytest.mark.parametrize(
    "voxels",
    [np.zeros((8, 8, 3)), np.full((30, 40, 5), 7, np.int16)],
    ids=["zero", "constant"],
)
def test_a_frame_without_contours_is_like_nothing(voxels: Array):
    assert fingerprint(voxels, SPACING).shape == SHAPE
    assert not fingerprint(voxels, SPACING).any()
    assert alike(voxels, voxels) == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 1), (300, 20, 2), (30, 30, 40)])
def test_any_size_has_a_fingerprint(shape: tuple[int, int, int]):
    voxels = np.random.default_rng(0).random(shape)
    assert np.isfinite(fingerprint(voxels, SPACING)).all()


def test_look_alikes_name_pairs_once_the_most_similar_first():
    a, b = picture(0), picture(1)
    noisy = b + np.random.default_rng(2).normal(0, 20, b.shape)
    prints = {"a": a, "b": b, "c": picture(3), "b2": noisy, "a2": a.swapaxes(0, 1)}
    found = look_alikes({name: fingerprint(voxels, SPACING) for name, voxels in prints.items()})
    assert [(first, second) for first, second, _ in found] == [("a", "a2"), ("b", "b2")]
    assert found[0][2] == pytest.approx(1, abs=1e-3)
    assert look_alikes({}) == []


# -- real hearts -----------------------------------------------------------------------------------


def hearts(real_data: Path, step: int) -> list[tuple[Array, Array, tuple[float, float]]]:
    """End-diastole, end-systole and spacing in the plane of every `step`-th subject."""
    folder = real_data / "acdc60" / "training"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: no other hearts to tell apart")
    found = []
    for patient in sorted(folder.iterdir())[::step]:
        files = sorted(f for f in patient.glob("*_frame*.nii.gz") if "_gt" not in f.name)
        ed, es = (nibabel.load(file) for file in files)
        found.append((ed.get_fdata(), es.get_fdata(), ed.header.get_zooms()[:2]))
    for file in sorted((real_data / "sunnybrook_mnms").rglob("*_sa.nii.gz")):
        cine = nibabel.load(file)
        ed, es = (np.asarray(cine.dataobj[..., t], float) for t in (0, cine.shape[3] // 3))
        found.append((ed, es, cine.header.get_zooms()[:2]))
    return found


def test_real_hearts_are_far_apart_and_their_copies_near(real_data: Path):
    found = hearts(real_data, 6)
    prints = np.stack([fingerprint(ed, spacing) for ed, _, spacing in found])
    later = np.stack([fingerprint(es, spacing) for _, es, spacing in found])
    same = np.eye(len(found), dtype=bool)
    for table in (similarity(prints, prints), similarity(prints, later)):
        assert table[~same].max() < SUSPECT - 0.05
        assert table[~same].max() < DIFFERENT_HEARTS + 0.005
    assert DIFFERENT_HEARTS < SUSPECT < SAME < ONE_HEART
    assert similarity(prints, later)[same].min() > ONE_HEART - 0.005
    for name, copy in COPIES.items():
        chosen = found[::4]
        copies = np.stack([fingerprint(copy(ed), spacing) for ed, _, spacing in chosen])
        table = similarity(prints[::4], copies)
        mine = np.eye(len(table), dtype=bool)
        assert table[mine].min() > SAME, name
        assert table[~mine].max() < SUSPECT - 0.05, name
