from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from scipy import ndimage, special, stats

from nnunet_ssp.methods.parts.views import (
    BRIGHTNESS,
    TRANSLATION,
    CropSettings,
    Views,
    ViewSettings,
    apply_views,
    counter_normal,
    draw_centres,
    draw_resized_crops,
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


def test_cat_undoes_slicing():
    sizes = np.array([[30, 20]] * 7)
    views = draw_views(np.random.default_rng(0), sizes, 2, (16, 16), ViewSettings(noise=1))
    again = Views.cat([views[:2], views[2:3], views[3:]])
    assert len(again) == 7
    turned = Views.cat([views[3:], views[:3]])
    for field in fields(Views):
        value = getattr(views, field.name)
        assert torch.equal(getattr(again, field.name), value)
        assert getattr(again, field.name).dtype == value.dtype
        assert torch.equal(getattr(turned, field.name), torch.cat([value[3:], value[:3]]))


def test_centres_are_those_of_boxes_that_fit():
    patch = (4, 8)
    sizes = np.array([[10, 20], [10, 6], [3, 20]])
    rng = np.random.default_rng(0)
    corners = np.stack([draw_centres(rng, sizes, patch) for _ in range(4000)])
    corners -= (np.array(patch) - 1) / 2
    # 7 x 13 boxes; a side two pixels short leaves one box, a side one short leaves two.
    expected = [(range(7), range(13)), (range(7), [-1]), ([-1, 0], range(13))]
    for number, sides in enumerate(expected):
        for axis, places in enumerate(sides):
            found, counts = np.unique(corners[:, number, axis], return_counts=True)
            assert found.tolist() == list(places)
            assert counts.min() > 0.6 * 4000 / len(places)  # all of them alike


def test_views_about_one_centre_differ_in_everything_else():
    sizes = np.array([[60, 50]] * 40)
    rng = np.random.default_rng(0)
    centre = draw_centres(rng, sizes, (16, 16))
    still = replace(STILL, noise=1, blur=1)
    first, second = (draw_views(rng, sizes, 1, (16, 16), still, centre) for _ in range(2))
    assert torch.equal(first.matrix, second.matrix)
    for name in ("noise_seed", "noise_sigma", "blur_sigma", "brightness", "shift", "gamma"):
        assert not (getattr(first, name) == getattr(second, name)).any(), name
    moved = draw_views(rng, sizes, 1, (16, 16), ViewSettings(), centre)
    assert not (moved.matrix == first.matrix).any()
    # Without a centre each draws its own.
    first, second = (draw_views(rng, sizes, 1, (16, 16), still) for _ in range(2))
    assert (first.matrix != second.matrix)[:, :, 2].any(1).all()


# -- resized crops ---------------------------------------------------------------------------------


def boxes(views: Views, patch) -> tuple[np.ndarray, np.ndarray]:
    """Corner and size (rows, columns) of each crop, from its map."""
    matrix = views.matrix.double().numpy()
    assert (matrix[:, [0, 1], [1, 0]] == 0).all()  # nothing is turned
    size = np.abs(matrix[:, [0, 1], [0, 1]]) * np.array(patch)
    return matrix[:, :, 2] - (size - 1) / 2, size


def crops(size, n=3000, patch=(24, 40), channels=1, seed=0, **changes) -> Views:
    rng = np.random.default_rng(seed)
    return draw_resized_crops(rng, np.array([size] * n), channels, patch, CropSettings(**changes))


@pytest.mark.parametrize("size", [(200, 200), (150, 231), (90, 60), (300, 100)])
def test_resized_crops_are_torchvisions(size):
    transforms = pytest.importorskip("torchvision.transforms")
    corner, box = boxes(crops(size), (24, 40))
    assert np.abs(corner - corner.round()).max() < 1e-3
    corner, box = corner.round(), box.round()
    assert (corner >= 0).all() and (corner + box <= size).all() and (box >= 1).all()
    area, ratio = box.prod(1), box[:, 1] / box[:, 0]
    # Sides are rounded to whole pixels.
    assert ((box - 0.5).prod(1) <= np.prod(size)).all()
    assert ((box + 0.5).prod(1) >= 0.08 * np.prod(size)).all()
    assert ((box[:, 1] - 0.5) / (box[:, 0] + 0.5) <= 4 / 3).all()
    assert ((box[:, 1] + 0.5) / (box[:, 0] - 0.5) >= 3 / 4).all()

    torch.manual_seed(0)
    image = torch.empty(1, *size)
    draw = transforms.RandomResizedCrop.get_params
    expected = np.array([draw(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for axis in (0, 1):
        assert stats.ks_2samp(corner[:, axis], expected[:, axis]).pvalue > 1e-3
        assert stats.ks_2samp(box[:, axis], expected[:, 2 + axis]).pvalue > 1e-3
    assert stats.ks_2samp(area, expected[:, 2:].prod(1)).pvalue > 1e-3
    assert stats.ks_2samp(ratio, expected[:, 3] / expected[:, 2]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "box"), [((200, 4), (5, 4)), ((4, 200), (4, 5)), ((3, 3), None), ((1, 1), (1, 1))]
)
def test_slices_that_no_box_fits_give_their_middle(size, box):
    corner, found = boxes(crops(size, n=50), (24, 40))
    assert (corner > -1e-3).all() and (corner + found < np.array(size) + 1e-3).all()
    if box:
        np.testing.assert_allclose(found, [box] * 50, atol=1e-4)
        middle = corner + found / 2
        assert np.abs(middle - np.array(size) / 2).max() <= 0.5 + 1e-4


def test_the_largest_crop_is_the_whole_slice():
    # A square box of the slice's area fits a square slice only as a whole; other shapes never do.
    for size, expected in (((60, 60), (60, 60)), ((60, 75), (60, 75)), ((60, 100), (60, 80))):
        _, box = boxes(crops(size, n=20, area=(1, 1), ratio=(3 / 4, 4 / 3)), (24, 40))
        fallback = np.abs(box - expected).max(1) < 1e-3
        assert fallback.any()
        assert (box.prod(1) <= np.prod(size) * 1.0001).all()


def test_the_shape_of_a_resized_crop_is_columns_over_rows():
    _, box = boxes(crops((200, 200), n=200, area=(0.1, 0.2), ratio=(2, 3)), (24, 40))
    assert ((box[:, 1] + 0.5) / (box[:, 0] - 0.5) >= 2).all()
    assert ((box[:, 1] - 0.5) / (box[:, 0] + 0.5) <= 3).all()


def test_resized_crops_are_flipped_left_to_right_only():
    diagonal = crops((80, 70)).matrix[:, [0, 1], [0, 1]]
    assert (diagonal[:, 0] > 0).all()
    assert abs((diagonal[:, 1] < 0).float().mean() - 0.5) < 0.03
    assert (crops((80, 70), flip=0).matrix[:, 1, 1] > 0).all()
    size, patch = (12, 16), (12, 16)
    views = crops(size, n=8, patch=patch, area=(1, 1), ratio=(16 / 12, 16 / 12), jitter=0)
    x = smooth(8, 1, *size)
    found, inside = apply_views(x, torch.tensor([size] * 8), views, patch)
    flipped = views.matrix[:, 1, 1] < 0
    assert flipped.any() and not flipped.all() and inside.all()
    expected = torch.where(flipped[:, None, None, None], x.flip(3), x)
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)


def test_a_resized_crop_fills_the_patch_with_its_box_and_no_padding():
    size, patch = (30, 22), (9, 11)
    views = crops(size, n=40, patch=patch, jitter=0)
    ramp = torch.stack(torch.meshgrid(torch.arange(30.0), torch.arange(22.0), indexing="ij"))
    found, inside = apply_views(
        ramp.expand(40, -1, -1, -1), torch.tensor([size] * 40), views, patch
    )
    assert inside.all()
    corner, box = boxes(views, patch)
    compared = 0
    for i in range(40):
        rows, columns = (
            corner[i, axis] + (np.arange(patch[axis]) + 0.5) * box[i, axis] / patch[axis] - 0.5
            for axis in (0, 1)
        )
        if views.matrix[i, 1, 1] < 0:
            columns = columns[::-1]
        expected = np.stack(np.meshgrid(rows, columns, indexing="ij"))
        # Away from the border, where the slice ends in zeros; torch's kernel keeps a ramp to 0.05.
        middle = ((expected > 1) & (expected < np.array(size).reshape(2, 1, 1) - 2)).all(0)
        assert np.abs(found[i].double().numpy() - expected)[:, middle].max(initial=0) < 0.06
        compared += middle.sum()
    assert compared > 40 * 30


def test_brightness_and_contrast_of_resized_crops_change_together():
    views = crops((40, 40), channels=2)
    changed = views.gain[:, 0] != 1
    assert abs(changed.float().mean() - 0.8) < 0.03
    for factor in (views.gain, views.contrast):
        assert factor.shape == (3000, 2)
        assert torch.equal(factor[:, 0], factor[:, 1])  # a slice's channels change together
        assert torch.equal(factor[:, 0] != 1, changed)
        values = factor[changed, 0].numpy()
        assert stats.kstest(values, stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3
    pair = np.corrcoef(views.gain[changed, 0], views.contrast[changed, 0])
    assert abs(pair[0, 1]) < 0.06
    for name, value in (("brightness", 1), ("gamma", 1), ("shift", 0), ("noise_sigma", 0)):
        assert (getattr(views, name) == value).all()
    assert (views.blur_sigma == 0).all() and not views.solarise.any()
    assert (crops((40, 40), jitter=0).gain == 1).all()
    assert (crops((40, 40), jitter=1).contrast != 1).all()


def test_resized_crops_are_decided_by_their_generator():
    a, b, c = crops((50, 40)), crops((50, 40)), crops((50, 40), seed=1)
    assert torch.equal(a.matrix, b.matrix) and torch.equal(a.gain, b.gain)
    assert not torch.equal(a.matrix, c.matrix)


# -- gain, contrast, solarisation ------------------------------------------------------------------


def test_all_intensity_steps_in_order_against_a_naive_loop():
    n, channels, patch = 4, 2, (10, 12)
    x = smooth(n, channels, 14, 13)
    sizes = torch.tensor([(14, 13)] * n)
    views = plain(centred(sizes), channels)
    g = torch.Generator().manual_seed(0)
    views.noise_sigma[:] = torch.tensor([0.2, 0.0, 0.1, 0.0])
    views.blur_sigma[1] = torch.tensor([0.6, 1.1])
    for name, low in (("gain", 0.8), ("contrast", 0.8), ("brightness", 0.6), ("gamma", 0.7)):
        setattr(views, name, torch.rand(n, channels, generator=g) * 0.8 + low)
    views.shift = torch.rand(n, channels, generator=g) - 0.5
    views.solarise = torch.tensor([True, False, True, True])
    result, _ = apply_views(x, sizes, views, patch)
    for i in range(n):
        noise = counter_normal(views.noise_seed[i : i + 1], (channels, *patch))[0].numpy()
        for c in range(channels):
            gain, contrast, brightness, gamma, shift = (
                float(getattr(views, name)[i, c])
                for name in ("gain", "contrast", "brightness", "gamma", "shift")
            )
            whole = x[i, c].double().numpy()
            image = crop(x[i, c], sizes[i], patch)
            image = image + float(views.noise_sigma[i]) * noise[c]
            for axis in (0, 1):
                image = naive_blur(image, float(views.blur_sigma[i, axis]), axis)
            image = image.min() + (image - image.min()) * gain
            image = image.mean() + (image - image.mean()) * contrast
            image = image * brightness + shift
            low, spread = image.min(), np.ptp(image)
            image = ((image - low) / (spread + 1e-7)) ** gamma * spread + low
            if views.solarise[i]:
                image = np.where(image > 0, whole.max() - image, image)
                assert (image > 0).any() and (image < 0).any()
            np.testing.assert_allclose(result[i, c].numpy(), image, atol=3e-5)


def crop(image: torch.Tensor, size: torch.Tensor, patch) -> np.ndarray:
    """The middle of one channel, without any change of intensity."""
    view, _ = apply_views(image[None, None], size[None], plain(centred(size[None])), patch)
    return view[0, 0].double().numpy()


def test_gain_and_contrast_leave_a_constant_slice_alone():
    sizes = torch.tensor([[9, 9]] * 2)
    views = plain(centred(sizes))
    views.gain[:], views.contrast[:] = 1.2, 0.8
    x = torch.full((2, 1, 9, 9), 3.0)
    torch.testing.assert_close(apply_views(x, sizes, views, (5, 5))[0], x[..., :5, :5])


def test_solarisation_turns_what_lies_above_zero_about_the_slices_largest_value():
    x = torch.tensor([[-2.0, -0.5, 0.0, 0.5], [1.0, 2.0, 3.0, 4.0], [5.0, 1.0, -1.0, 0.0]])
    canvas = torch.zeros(2, 1, 6, 6)
    canvas[:, 0, :3, :4] = x
    sizes = torch.tensor([[3, 4]] * 2)
    views = plain(centred(sizes))
    views.solarise[1] = True
    view, inside = apply_views(canvas, sizes, views, (5, 6))
    torch.testing.assert_close(view[0, 0, 1:4, 1:5], x, atol=1e-5, rtol=0)
    expected = torch.where(x > 0, 5 - x, x)
    # Interpolation may leave a value of 0 a little on either side of it.
    certain = x.abs() > 1e-3
    torch.testing.assert_close(view[1, 0, 1:4, 1:5][certain], expected[certain], atol=1e-5, rtol=0)
    assert (view[~inside] == 0).all() and (~inside).any()
    # The largest value is the slice's own, also where the view does not show it.
    narrow, _ = apply_views(canvas, sizes, views, (1, 2))
    torch.testing.assert_close(narrow[1, 0], torch.tensor([[3.0, 2.0]]), atol=1e-5, rtol=0)


# -- probabilities ---------------------------------------------------------------------------------


def test_brightness_shift_gamma_and_solarisation_have_probabilities_of_their_own():
    n = 6000
    sizes = np.array([[20, 20]] * n)
    shares = {"brightness": 0.2, "shift": 0.15, "gamma": 0.35}
    settings = ViewSettings(**{f"{k}_probability": v for k, v in shares.items()}, solarise=0.25)
    views = draw_views(np.random.default_rng(0), sizes, 2, (8, 8), settings)
    always = draw_views(np.random.default_rng(0), sizes, 2, (8, 8), ViewSettings())
    applied = {"solarise": views.solarise}
    for name, share in shares.items():
        values, neutral = getattr(views, name), 0 if name == "shift" else 1
        applied[name] = values[:, 0] != neutral
        assert torch.equal(values[:, 1] != neutral, applied[name])  # all channels or none
        assert abs(applied[name].float().mean() - share) < 0.02
        # What is drawn besides stays the same.
        where = applied[name][:, None]
        assert torch.equal(torch.where(where, getattr(always, name), neutral), values)
    assert abs(views.solarise.float().mean() - 0.25) < 0.02
    together = np.corrcoef(np.stack([a.numpy() for a in applied.values()]).astype(float))
    assert np.abs(together - np.eye(4)).max() < 0.05
    for name in ("matrix", "noise_sigma", "noise_seed", "blur_sigma"):
        assert torch.equal(getattr(views, name), getattr(always, name))
    assert not always.solarise.any()


def test_views_put_together_keep_their_rows():
    sizes = np.array([[30, 20]] * 4)
    parts = [
        draw_views(np.random.default_rng(seed), sizes[:n], 2, (16, 16), ViewSettings(solarise=0.5))
        for seed, n in ((0, 4), (1, 1), (2, 3))
    ]
    whole = Views.cat(parts)
    assert len(whole) == 8
    for field in fields(Views):
        for rows, part in zip((slice(0, 4), slice(4, 5), slice(5, 8)), parts, strict=True):
            assert torch.equal(getattr(whole[rows], field.name), getattr(part, field.name))


def test_geometry_alone_leaves_every_intensity():
    sizes = np.array([[40, 50]] * 6)
    views = draw_views(np.random.default_rng(3), sizes, 2, (32, 32), ViewSettings(solarise=0.5))
    alone = views.geometry()
    assert torch.equal(alone.matrix, views.matrix) and len(alone) == 6
    for name in ("gain", "contrast", "brightness", "gamma"):
        assert getattr(alone, name).shape == getattr(views, name).shape
        assert getattr(alone, name).eq(1).all()
    for name in ("noise_sigma", "blur_sigma", "shift", "solarise"):
        assert not getattr(alone, name).any()
    for field in fields(Views):
        assert getattr(alone, field.name).dtype == getattr(views, field.name).dtype
