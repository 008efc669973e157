from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from nnunet_ssp.duplicates import (
    SAME,
    SHAPE,
    SUSPECT,
    _within_zeros,
    fingerprint,
    look_alikes,
    similarity,
)

Array = NDArray[np.floating]


def picture(seed: int, shape: tuple[int, int, int] = (60, 72, 9)) -> Array:
    """A smooth random stack, positive everywhere."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = gaussian_filter(noise, (3, 3, 1))
    return 100 + 50 * smooth / smooth.std() - min(0, smooth.min()) * 400


def alike(first: Array, second: Array) -> float:
    return float(similarity(fingerprint(first)[None], fingerprint(second)[None])[0, 0])


# What one and the same frame looks like in another source.
COPIES: dict[str, Callable[[Array], Array]] = {
    "flip": lambda v: v[::-1],
    "transpose": lambda v: v.swapaxes(0, 1),
    "rotated": lambda v: np.rot90(v)[..., ::-1],
    "padded": lambda v: np.pad(v, ((20, 3), (0, 31), (1, 2))),
    "rescaled": lambda v: 3.7 * v,
    "clipped": lambda v: np.minimum(v, np.percentile(v, 95)),
    "gamma": lambda v: v**2 / v.max(),
    "finer": lambda v: zoom(v, (1.2, 1.2, 1), order=1),
    "coarser": lambda v: zoom(v, (0.8, 0.8, 1), order=1),
    "shaded": lambda v: v * np.linspace(0.5, 1.5, v.shape[0])[:, None, None],
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_recognised_and_another_picture_is_not(copy: str):
    assert alike(picture(0), COPIES[copy](picture(0))) > 0.9
    assert alike(picture(0), COPIES[copy](picture(1))) < SUSPECT


@settings(max_examples=25)
@given(st.integers(0, 9), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 9))
def test_no_orientation_and_no_zero_border_matters(
    seed: int, turns: int, transposed: bool, reverse: bool, border: int
):
    voxels = picture(seed, (40, 40, 6))
    moved = np.rot90(voxels, turns)
    moved = moved.swapaxes(0, 1) if transposed else moved
    moved = np.pad(moved[..., ::-1] if reverse else moved, border)
    assert alike(voxels, moved) == pytest.approx(1, abs=1e-4)


def test_similarity_is_symmetric_and_that_of_the_best_orientation():
    grids = np.stack([fingerprint(picture(seed)) for seed in range(4)])
    table = similarity(grids, grids)
    np.testing.assert_allclose(table, table.T, atol=1e-5)
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-5)
    turned = [np.rot90(g, k) for g in (grids[1], grids[1][..., ::-1]) for k in range(4)]
    turned += [g.swapaxes(0, 1) for g in turned]
    assert table[0, 1] == pytest.approx(max(float((grids[0] * g).sum()) for g in turned), abs=1e-5)


@pytest.mark.parametrize(
    "voxels",
    [np.zeros((8, 8, 3)), np.full((30, 40, 5), 7, np.int16), np.pad(np.ones((30, 40, 5)), 4)],
    ids=["zero", "constant", "a box"],
)
def test_a_frame_without_contours_is_like_nothing(voxels: Array):
    assert fingerprint(voxels).shape == SHAPE
    assert not fingerprint(voxels).any()
    assert alike(voxels, voxels) == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 1), (300, 20, 2)])
def test_any_size_has_a_fingerprint(shape: tuple[int, int, int]):
    assert np.isfinite(fingerprint(np.random.default_rng(0).random(shape))).all()


def test_the_box_without_zeros():
    voxels = np.zeros((6, 7, 4), np.int16)
    voxels[2, 1, 0] = voxels[4, 5, 2] = -1
    assert _within_zeros(voxels).shape == (3, 5, 3)


def test_look_alikes_name_pairs_once_the_most_similar_first():
    a, b = picture(0), picture(1)
    noisy = b + np.random.default_rng(2).normal(0, 20, b.shape)
    prints = {"a": a, "b": b, "c": picture(3), "b2": noisy, "a2": a.swapaxes(0, 1)}
    found = look_alikes({name: fingerprint(voxels) for name, voxels in prints.items()})
    assert [(first, second) for first, second, _ in found] == [("a", "a2"), ("b", "b2")]
    assert found[0][2] == pytest.approx(1, abs=1e-4)
    assert look_alikes({}) == []


# -- real hearts ---------------------------------------------------------------------------------


def acdc(real_data: Path) -> list[list[Array]]:
    """ED and ES of each patient."""
    folder = real_data / "acdc60" / "training"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: no other hearts to tell apart")
    patients = []
    for patient in sorted(folder.iterdir()):
        files = sorted(f for f in patient.glob("*_frame*.nii.gz") if "_gt" not in f.name)
        patients.append([np.asanyarray(nibabel.load(file).dataobj) for file in files])
    return patients


def test_real_hearts_are_far_apart_and_their_copies_near(real_data: Path):
    patients = acdc(real_data)
    cines = sorted((real_data / "sunnybrook_mnms").rglob("*_sa.nii.gz"))
    sunnybrook = [np.asanyarray(nibabel.load(file).dataobj) for file in cines]
    hearts = [ed for ed, _ in patients] + [cine[..., 0] for cine in sunnybrook]
    later = [es for _, es in patients] + [cine[..., cine.shape[3] // 3] for cine in sunnybrook]
    first, second = (np.stack([fingerprint(v) for v in frames]) for frames in (hearts, later))
    same = np.eye(len(hearts), dtype=bool)
    for table in (similarity(first, first), similarity(first, second)):
        assert table[~same].max() < 0.45 < SUSPECT
    assert similarity(first, second)[same].min() > 0.9 > SAME
    for name, copy in COPIES.items():
        copies = np.stack([fingerprint(copy(v.astype(np.float32))) for v in hearts[::6]])
        table = similarity(first, copies)[::6]
        mine = np.eye(len(table), dtype=bool)
        assert table[mine].min() > 0.94, name
        assert table[~mine].max() < SUSPECT, name
