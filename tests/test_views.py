from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from scipy import ndimage, special, stats

from nnunet_ssp.views import (
    BRIGHTNESS,
    TRANSLATION,
    Views,
    ViewSettings,
    apply_views,
    counter_normal,
    draw_views,
    gaussian_blur,
)

STILL = ViewSettings(rotation=0, scale=(1, 1), translation=0, flip=0)


def plain(matrix: torch.Tensor, channels: int = 1) -> Views:
    """Views with the given geometry and untouched intensities."""
    n = len(matrix)
    one, zero = torch.ones(n, channels), torch.zeros(n, channels)
    seeds = torch.arange(n)
    return Views(
        matrix=matrix,
        noise_sigma=torch.zeros(n),
        noise_seed=seeds,
        blur_sigma=torch.zeros(n, 2),
        gain=one,
        contrast=one.clone(),
        brightness=one.clone(),
        shift=zero,
        gamma=one.clone(),
        solarise=torch.zeros(n, dtype=torch.bool),
    )


def centred(sizes, linear=((1.0, 0.0), (0.0, 1.0))) -> torch.Tensor:
    """(N, 2, 3): a linear map around the centre of each slice."""
    centre = (torch.as_tensor(sizes, dtype=torch.float32) - 1) / 2
    linear = torch.tensor(linear).expand(len(centre), 2, 2)
    return torch.cat([linear, centre[:, :, None]], 2)


def smooth(n: int, channels: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, rows // 4 + 2, columns // 4 + 2, generator=g)
    return F.interpolate(coarse, (rows, columns), mode="bicubic", align_corners=False)


def ragged(sizes, channels: int, seed: int = 0) -> torch.Tensor:
    """A canvas as the store makes it: slices in the top left corner, 0 elsewhere."""
    rows, columns = np.max(sizes, axis=0)
    canvas = torch.zeros(len(sizes), channels, rows, columns)
    for i, (height, width) in enumerate(sizes):
        canvas[i, :, :height, :width] = smooth(1, channels, height, width, seed + i)[0]
    return canvas


# -- geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch"), [((9, 12), (5, 6)), ((8, 8), (8, 8))])
def test_the_identity_crops_exactly(size, patch):
    x = smooth(2, 3, *size)
    sizes = torch.tensor([size, size])
    view, inside = apply_views(x, sizes, plain(centred(sizes), 3), patch)
    top, left = (size[0] - patch[0]) // 2, (size[1] - patch[1]) // 2
    crop = x[:, :, top : top + patch[0], left : left + patch[1]]
    torch.testing.assert_close(view, crop, atol=2e-6, rtol=0)
    assert inside.all()
    assert (view.dtype, inside.dtype, inside.shape) == (torch.float32, torch.bool, (2, 1, *patch))


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        (((-1.0, 0.0), (0.0, 1.0)), lambda x: x.flip(2)),
        (((1.0, 0.0), (0.0, -1.0)), lambda x: x.flip(3)),
        (((0.0, 1.0), (-1.0, 0.0)), lambda x: torch.rot90(x, 1, (2, 3))),
        (((0.0, -1.0), (1.0, 0.0)), lambda x: torch.rot90(x, -1, (2, 3))),
        (((-1.0, 0.0), (0.0, -1.0)), lambda x: torch.rot90(x, 2, (2, 3))),
    ],
)
def test_flips_and_quarter_turns_are_exact(linear, expected):
    x = smooth(1, 2, 10, 10)
    sizes = torch.tensor([[10, 10]])
    view, inside = apply_views(x, sizes, plain(centred(sizes, linear), 2), (10, 10))
    torch.testing.assert_close(view, expected(x), atol=3e-6, rtol=0)
    assert inside.all()


def keys(t: float, a: float = -0.75) -> float:
    """The bicubic kernel that torch uses."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def test_values_at_half_a_pixel():
    line = torch.zeros(1, 1, 8, 8)
    line[0, 0, 4] = 1
    matrix = centred([[8, 8]])
    matrix[0, 0, 2] += 0.5
    view, _ = apply_views(line, torch.tensor([[8, 8]]), plain(matrix), (8, 8))
    assert keys(0.5) == 0.59375
    torch.testing.assert_close(
        view[0, 0, 2:6, 3], torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
    )


def test_against_a_naive_bicubic_and_the_documented_order():
    # centre + rotation @ scale @ flip @ (point + translation), drawn by draw_views itself.
    sizes = np.array([[23, 31], [30, 20], [12, 14]])
    patch = (16, 18)
    x = ragged(sizes, 2)
    views = draw_views(np.random.default_rng(3), sizes, 2, patch, ViewSettings())
    still = plain(views.matrix, 2)
    result, inside = apply_views(x, torch.from_numpy(sizes), still, patch)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        for _ in range(40):
            r, c = int(rng.integers(patch[0])), int(rng.integers(patch[1]))
            point = np.array([r - (patch[0] - 1) / 2, c - (patch[1] - 1) / 2, 1.0])
            row, column = views.matrix[i].double().numpy() @ point
            within = -0.5 < row < height - 0.5 and -0.5 < column < width - 0.5
            assert inside[i, 0, r, c] == within
            expected = np.zeros(2)
            if within:
                for y in range(math.floor(row) - 1, math.floor(row) + 3):
                    for z in range(math.floor(column) - 1, math.floor(column) + 3):
                        if 0 <= y < height and 0 <= z < width:
                            weight = keys(row - y) * keys(column - z)
                            expected += weight * x[i, :, y, z].double().numpy()
            np.testing.assert_allclose(result[i, :, r, c].numpy(), expected, atol=2e-5)


def test_against_affine_grid():
    size, patch = (24, 30), (20, 16)
    x = smooth(3, 1, *size)
    sizes = torch.tensor([size] * 3)
    views = draw_views(np.random.default_rng(1), sizes.numpy(), 1, patch, ViewSettings())
    view, inside = apply_views(x, sizes, plain(views.matrix), patch)
    # The same map in normalised coordinates, columns first, as affine_grid wants it.
    source, target = torch.tensor(size).float(), torch.tensor(patch).float()
    linear = views.matrix[:, :, :2] * target / source[:, None]
    offset = (2 * views.matrix[:, :, 2] + 1) / source - 1
    theta = torch.cat([linear.flip(1, 2), offset.flip(1)[..., None]], 2)
    grid = F.affine_grid(theta, [3, 1, *patch], align_corners=False)
    expected = F.grid_sample(x, grid, mode="bicubic", align_corners=False)
    torch.testing.assert_close(view, expected * inside, atol=2e-5, rtol=0)
    within = (grid.abs() < 1).all(-1)
    assert (within != inside[:, 0]).float().mean() < 0.01  # rounding at the very border


def test_outside_the_slice_is_zero_after_the_intensity_steps_too():
    sizes = torch.tensor([[6, 4]])
    x = smooth(1, 2, 6, 4) + 3
    views = plain(centred(sizes), 2)
    views.shift[:] = 0.7
    views.noise_sigma[:] = 0.5
    views.blur_sigma[:] = 1.0
    view, inside = apply_views(x, sizes, views, (10, 10))
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[2:8, 3:7] = True
    assert torch.equal(inside[0, 0], expected)
    assert (view[:, :, ~expected] == 0).all()
    assert (view[:, :, expected] != 0).all()


def test_a_view_does_not_depend_on_chunks_neighbours_or_canvas():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 60, (9, 2))
    patch = (40, 36)
    x, table = ragged(sizes, 2), torch.from_numpy(sizes)
    strong = ViewSettings(noise=1, blur=0.6)
    views = draw_views(rng, sizes, 2, patch, strong)
    sharp = views.blur_sigma[:, 0] == 0
    assert 0 < sharp.sum() < 9
    whole, inside = apply_views(x, table, views, patch)
    for size in (1, 2, 4):
        chunks = [
            apply_views(x[rows], table[rows], views[rows], patch)
            for rows in (slice(i, i + size) for i in range(0, 9, size))
        ]
        parts = torch.cat([view for view, _ in chunks])
        assert torch.equal(torch.cat([where for _, where in chunks]), inside)
        assert torch.equal(parts[sharp], whole[sharp])
        # A convolution over another number of images may round in another order.
        torch.testing.assert_close(parts, whole, atol=3e-6, rtol=0)
    for i, (height, width) in enumerate(sizes):  # alone, in its own canvas
        rows = slice(i, i + 1)
        alone, where = apply_views(x[rows, :, :height, :width], table[rows], views[rows], patch)
        assert torch.equal(where, inside[rows])
        torch.testing.assert_close(alone, whole[rows], atol=2e-4, rtol=0)


def test_stored_half_precision_is_computed_in_float32():
    sizes = np.array([[20, 20]])
    views = draw_views(np.random.default_rng(0), sizes, 1, (16, 16), ViewSettings(noise=1, blur=1))
    x = smooth(1, 1, 20, 20).half()
    table = torch.from_numpy(sizes)
    half, _ = apply_views(x, table, views, (16, 16))
    full, _ = apply_views(x.float(), table, views, (16, 16))
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_constant_slices_survive():
    sizes = np.array([[20, 20]])
    views = draw_views(np.random.default_rng(0), sizes, 1, (8, 8), STILL)
    view, _ = apply_views(torch.full((1, 1, 20, 20), 2.0), torch.from_numpy(sizes), views, (8, 8))
    expected = 2 * views.brightness + views.shift
    torch.testing.assert_close(view, expected.reshape(1, 1, 1, 1).expand(view.shape))


# -- intensity -------------------------------------------------------------------------------------


def test_intensity_steps_in_the_papers_order_against_a_naive_loop():
    n, channels, patch = 3, 2, (18, 22)
    x = smooth(n, channels, *patch)
    sizes = torch.tensor([patch] * n)
    views = plain(centred(sizes), channels)
    views.noise_sigma[:] = torch.tensor([0.2, 0.0, 0.1])
    views.blur_sigma[:] = torch.tensor([[0.5, 1.5], [1.0, 0.7], [0.0, 0.0]])
    g = torch.Generator().manual_seed(0)
    views.brightness = torch.rand(n, channels, generator=g) + 0.6
    views.shift = torch.rand(n, channels, generator=g) - 0.5
    views.gamma = torch.rand(n, channels, generator=g) + 0.7
    result, _ = apply_views(x, sizes, views, patch)
    for i in range(n):
        noise = counter_normal(views.noise_seed[i : i + 1], (channels, *patch))[0].numpy()
        for c in range(channels):
            image = x[i, c].numpy().astype(np.float64)
            image = image + float(views.noise_sigma[i]) * noise[c]
            for axis in (0, 1):
                image = naive_blur(image, float(views.blur_sigma[i, axis]), axis)
            image = image * float(views.brightness[i, c]) + float(views.shift[i, c])
            low, spread = image.min(), np.ptp(image)
            image = ((image - low) / (spread + 1e-7)) ** float(views.gamma[i, c]) * spread + low
            np.testing.assert_allclose(result[i, c].numpy(), image, atol=2e-5)


def naive_blur(image, sigma, axis, mode="nearest"):
    """MONAI's "erf" kernel, cut at 4 standard deviations."""
    if sigma == 0:
        return image
    radius = int(max(4 * sigma, 0.5) + 0.5)
    t = np.arange(-radius, radius + 1)
    edge = special.erf((np.arange(-radius, radius + 2) - 0.5) / (math.sqrt(2) * sigma))
    assert len(t) == len(edge) - 1
    kernel = np.diff(edge)
    return ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode=mode)


@pytest.mark.parametrize("sigma", [(0.5, 1.5), (1.1, 0.0), (0.0, 2.0), (1.5, 0.51)])
def test_blur_against_an_erf_kernel(sigma):
    x = torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    widths = torch.tensor([sigma, (2.0, 2.0)])  # a wide neighbour must not matter
    blurred = gaussian_blur(x, widths)
    for c in range(3):
        expected = x[0, c].double().numpy()
        for axis in (0, 1):
            expected = naive_blur(expected, sigma[axis], axis)
        np.testing.assert_allclose(blurred[0, c].numpy(), expected, atol=2e-6)


def test_blur_in_the_interior_is_close_to_scipys():
    x = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(x, torch.tensor([[1.5, 1.5]]))[0, 0].numpy()
    # Integrating over a pixel adds its variance of 1/12 to the Gaussian's.
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), math.sqrt(1.5**2 + 1 / 12))
    np.testing.assert_allclose(blurred[8:-8, 8:-8], expected[8:-8, 8:-8], atol=2e-3)


def test_blur_conserves_mass_and_leaves_an_axis_with_width_zero():
    x = torch.zeros(2, 1, 33, 33)
    x[:, :, 16, 16] = 1
    blurred = gaussian_blur(x, torch.tensor([[1.0, 0.0], [1.3, 0.8]]))
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(2))
    assert (blurred[0, 0, :, :16] == 0).all() and (blurred[0, 0, :, 17:] == 0).all()
    torch.testing.assert_close(blurred[1], blurred[1].flip(1))
    ones = torch.ones(1, 1, 9, 9)  # the border does not darken
    torch.testing.assert_close(gaussian_blur(ones, torch.tensor([[1.5, 1.5]])), ones)


# -- noise -----------------------------------------------------------------------------------------


def test_counter_normal_is_standard_normal():
    x = counter_normal(torch.arange(64), (1, 128, 128)).flatten().numpy()
    assert abs(x.mean()) < 4e-3
    assert abs(x.var() - 1) < 6e-3
    assert abs(stats.skew(x)) < 0.01
    assert abs(stats.kurtosis(x)) < 0.02
    assert stats.kstest(x[::16], "norm").pvalue > 0.01
    assert np.isfinite(x).all() and np.abs(x).max() > 4


def test_counter_normal_of_different_seeds_and_places_is_uncorrelated():
    x = counter_normal(torch.arange(64), (128, 128))
    between_seeds = torch.corrcoef(x.flatten(1)) - torch.eye(64)
    assert between_seeds.abs().max() < 0.045  # 2,016 pairs of standard error 1/128
    for shift in ((0, 1), (1, 0), (1, 1), (0, 64)):
        moved = x.roll(shift, (1, 2))
        assert (x * moved).mean().abs() < 4e-3
        assert ((x**2 - 1) * (moved**2 - 1)).mean().abs() < 8e-3


def test_counter_normal_depends_on_seed_and_position_only():
    seeds = torch.tensor([5, 2**31 - 1, 7])
    x = counter_normal(seeds, (2, 6, 8))
    assert torch.equal(x, counter_normal(seeds, (2, 6, 8)))
    assert torch.equal(x[[2, 0]], counter_normal(seeds[[2, 0]], (2, 6, 8)))
    assert torch.equal(x.flatten(1), counter_normal(seeds, (96,)))
    assert torch.equal(x.flatten(1)[:, :50], counter_normal(seeds, (50,)))


# -- drawing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(40, 41), (24, 24), (25, 25), (23, 22), (21, 19), (7, 60), (12, 13)]
)
@pytest.mark.parametrize("patch", [(24, 24), (25, 23)])
def test_centres_lie_uniformly_in_nnunets_own_boxes(size, patch, monkeypatch):
    loader = object.__new__(nnUNetDataLoader)
    loader.patch_size, loader.need_to_pad, loader.has_ignore = patch, np.zeros(2, int), False
    bounds = []
    monkeypatch.setattr(np.random, "randint", lambda low, high: bounds.append((low, high)) or low)
    loader.get_bbox(np.array(size), False, None)

    n = 4000
    views = draw_views(np.random.default_rng(0), np.array([size] * n), 1, patch, STILL)
    corner = views.matrix[:, :, 2].numpy() - (np.array(patch) - 1) / 2
    for axis, (low, high) in enumerate(bounds):
        values, counts = np.unique(corner[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(low, high))
        if len(values) > 1:
            assert stats.chisquare(counts).pvalue > 1e-4


def test_the_translation_is_uniform_and_turned_and_scaled_with_the_patch():
    patch = (64, 96)  # as large as the slice, so the centre is fixed
    assert TRANSLATION * 256 == 40
    views = draw_views(np.random.default_rng(0), np.array([patch] * 4000), 1, patch, ViewSettings())
    matrix = views.matrix.double().numpy()
    offset = matrix[:, :, 2] - (np.array(patch) - 1) / 2
    moved = np.linalg.solve(matrix[:, :, :2], offset[..., None])[..., 0]
    for axis in (0, 1):
        limit = 40 / 256 * patch[axis]
        uniform = stats.uniform(-limit, 2 * limit)
        assert np.abs(moved[:, axis]).max() <= limit * 1.0001
        assert stats.kstest(moved[:, axis], uniform.cdf).pvalue > 1e-3


def test_marginals_of_the_papers_augmentation():
    n = 8000
    sizes = np.array([[64, 64]] * n)
    views = draw_views(np.random.default_rng(0), sizes, 2, (64, 64), ViewSettings())
    linear = views.matrix[:, :, :2].double().numpy()
    determinant = np.linalg.det(linear)

    def is_uniform(values, low, high):
        values = np.asarray(values).ravel()
        assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3

    zoom = np.sqrt(np.abs(determinant))
    is_uniform(zoom, 0.7, 1.4)
    # linear = rotation @ diag(zoom * flip): each column is a unit vector up to zoom
    np.testing.assert_allclose(np.linalg.norm(linear, axis=1), zoom[:, None] * [1, 1], atol=1e-5)
    np.testing.assert_allclose((linear[:, :, 0] * linear[:, :, 1]).sum(1), 0, atol=1e-5)
    is_uniform(np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])), -180, 180)
    assert abs((determinant < 0).mean() - 0.5) < 0.02  # one of two flips, each half the time

    for sigma, low, high, share in (
        (views.noise_sigma, 0.0, 0.2, 0.2),
        (views.blur_sigma[:, 0], 0.5, 1.5, 0.2),
        (views.blur_sigma[:, 1], 0.5, 1.5, 0.2),
    ):
        assert abs((sigma > 0).float().mean() - share) < 0.02
        is_uniform(sigma[sigma > 0], low, high)
    assert torch.equal(views.blur_sigma[:, 0] > 0, views.blur_sigma[:, 1] > 0)
    assert views.noise_seed.unique().numel() > n - 10
    for values, low, high in (
        (views.brightness, 0.6, 1.5),
        (views.shift, -0.4, 0.4),
        (views.gamma, 0.7, 1.5),
    ):
        assert values.shape == (n, 2)
        is_uniform(values, low, high)
        assert abs(np.corrcoef(values.T.numpy())[0, 1]) < 0.05  # channels apart


def test_flips_of_the_two_axes_are_independent():
    sizes = np.array([[16, 16]] * 4000)
    settings = replace(STILL, flip=0.5)
    diagonal = draw_views(np.random.default_rng(0), sizes, 1, (16, 16), settings).matrix[
        :, [0, 1], [0, 1]
    ]
    assert set(diagonal.unique().tolist()) == {-1.0, 1.0}
    assert diagonal.mean(0).abs().max() < 0.06
    assert diagonal.prod(1).mean().abs() < 0.06


def test_brightness_as_meant_and_as_it_ran():
    assert BRIGHTNESS["meant"] == ViewSettings().brightness == (0.6, 1.5)
    # MONAI multiplies by 1 + f.
    assert BRIGHTNESS["run"] == tuple(1 + f for f in BRIGHTNESS["meant"])
    sizes = np.array([[8, 8]] * 500)
    drawn = draw_views(
        np.random.default_rng(0), sizes, 1, (8, 8), ViewSettings(brightness=BRIGHTNESS["run"])
    )
    assert 1.6 <= drawn.brightness.min() < 1.65 and 2.45 < drawn.brightness.max() <= 2.5


def test_drawing_is_decided_by_its_generator_and_probabilities_shift_nothing():
    sizes = np.array([[30, 20]] * 50)

    def draw(seed=0, **changes):
        return draw_views(np.random.default_rng(seed), sizes, 2, (16, 16), ViewSettings(**changes))

    reference, same, other = draw(), draw(), draw(seed=1)
    always, never = draw(noise=1, blur=1, flip=1), draw(noise=0, blur=0, flip=0)
    for field in fields(Views):
        a, b, c = (getattr(v, field.name) for v in (reference, same, other))
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (field.name in ("gain", "contrast", "solarise"))  # neutral
    for name in ("noise_seed", "brightness", "shift", "gamma"):
        assert torch.equal(getattr(always, name), getattr(never, name))
    assert (always.noise_sigma > 0).all() and (never.noise_sigma == 0).all()


def test_rows_of_views():
    sizes = np.array([[30, 20]] * 7)
    views = draw_views(np.random.default_rng(0), sizes, 2, (16, 16), ViewSettings())
    part = views[2:5]
    assert (len(views), len(part)) == (7, 3)
    for field in fields(Views):
        assert torch.equal(getattr(part, field.name), getattr(views, field.name)[2:5])
