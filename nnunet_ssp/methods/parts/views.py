"""Random views of slices: drawn as a table of numbers on the host, applied on the device.

`draw_views` draws the parameters of a whole batch from one seeded generator. `apply_views` turns slices and parameters
into pixels without drawing anything. So a batch gives the same views in one piece, in chunks, in a recomputation and
split over ranks. Geometry (crop, rotation, scale, flips, shift) is one affine map and one interpolation.

Source of the numbers: de Mooij et al. (arXiv 2409.18100) and their code, in pixels of a 256 x 256 image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Of the patch side: their +-40 px.
TRANSLATION = 40 / 256
# Standard deviations at which the blur kernel ends.
BLUR_TRUNCATION = 4.0


@dataclass(frozen=True)
class ViewSettings:
    """Strength of the augmentation; the defaults are de Mooij et al.'s for SimCLR, PCL and MIM."""

    # Degrees, uniform in +-rotation.
    rotation: float = 180.0
    # Of the sampling grid, uniform: above 1 zooms out.
    scale: tuple[float, float] = (0.7, 1.4)
    # Of the patch side, uniform in +-translation.
    translation: float = TRANSLATION
    # Probability per axis.
    flip: float = 0.5
    # Probability.
    noise: float = 0.2
    # Standard deviation, uniform.
    noise_sigma: tuple[float, float] = (0.0, 0.2)
    # Probability.
    blur: float = 0.2
    # Pixels, uniform, rows and columns apart.
    blur_sigma: tuple[float, float] = (0.5, 1.5)
    # Factor, uniform.
    brightness: tuple[float, float] = (0.6, 1.5)
    # Added, uniform in +-shift.
    shift: float = 0.4
    # Exponent, uniform.
    gamma: tuple[float, float] = (0.7, 1.5)
    brightness_probability: float = 1.0
    shift_probability: float = 1.0
    gamma_probability: float = 1.0
    # Probability.
    solarise: float = 0.0


@dataclass(frozen=True)
class CropSettings:
    """Random resized crops; the defaults are Kalapos and Gyires-Tóth's for BYOL (their ACDC configuration)."""

    # Share of the slice, uniform.
    area: tuple[float, float] = (0.08, 1.0)
    # Columns over rows, log-uniform.
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    # Probability, left to right.
    flip: float = 0.5
    # Probability of gain and contrast together.
    jitter: float = 0.8
    # Factor of the distance from the darkest value, uniform.
    gain: tuple[float, float] = (0.8, 1.2)
    # Factor of the distance from the mean, uniform.
    contrast: tuple[float, float] = (0.8, 1.2)


# The paper's configuration says 0.6-1.5. The library that it calls multiplies by 1 + f: it ran with 1.6-2.5.
BRIGHTNESS: dict[str, tuple[float, float]] = {"meant": (0.6, 1.5), "run": (1.6, 2.5)}
BrightnessName = Literal["meant", "run"]
# Where crops lie. free: chosen without labels. mask: about the labelled structures, as de Mooij et al.'s code does.
CropsName = Literal["free", "mask"]


@dataclass
class Views:
    """Parameters of N views, one row each, float32 unless noted. C is the number of channels.

    Attributes:
        matrix: (N, 2, 3) maps an output pixel (row, column, 1), counted from the centre of the patch, to a pixel
            of the slice, pixel centres at integers.
        noise_sigma: (N,) standard deviation of the noise, 0 for none.
        noise_seed: (N,) int64 seed of the noise.
        blur_sigma: (N, 2) pixels along rows and columns, 0 for none.
        gain: (N, C) factor of the distance from the view's darkest value.
        contrast: (N, C) factor of the distance from the view's mean.
        brightness: (N, C) factor.
        shift: (N, C) added after the factor.
        gamma: (N, C) exponent.
        solarise: (N,) bool: turn values above 0 about the slice's largest one.
    """

    matrix: Tensor
    noise_sigma: Tensor
    noise_seed: Tensor
    blur_sigma: Tensor
    gain: Tensor
    contrast: Tensor
    brightness: Tensor
    shift: Tensor
    gamma: Tensor
    solarise: Tensor

    def __len__(self) -> int:
        return len(self.matrix)

    def __getitem__(self, rows: slice) -> Views:
        return Views(*(getattr(self, field.name)[rows] for field in fields(self)))

    def geometry(self) -> Views:
        """Return views of the same pixels that change no intensity."""
        return _neutral_views(*self.gain.shape, matrix=self.matrix.numpy())

    @staticmethod
    def cat(parts: Sequence[Views]) -> Views:
        """Join the views of the parts, one part after the other."""
        return Views(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Views))
        )


def draw_centres(
    rng: np.random.Generator,
    sizes: NDArray[np.int64],
    patch_size: tuple[int, int],
    known: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Draw the centre of one patch per slice, uniform over the boxes that nnU-Net's own sampler would draw.

    Args:
        rng: Source of randomness.
        sizes: (N, 2) rows and columns of each slice.
        patch_size: Rows and columns of the patch.
        known: (N, 2) row and column that are given in their place, NaN for none; as many numbers are drawn.

    Returns:
        (N, 2) row and column, between pixels where the patch has an even number of them.

    >>> draw_centres(np.random.default_rng(0), np.array([[32, 32]]), (32, 31)).tolist()[0][0]
    15.5
    """
    patch = np.asarray(patch_size)
    # nnU-Net pads a slice smaller than the patch on both sides and then takes any box that fits.
    padding = np.maximum(patch - sizes, 0)
    low = -padding // 2  # rounds down, as nnU-Net's own: an odd padding leaves two boxes
    high = sizes + padding // 2 + padding % 2 - patch
    corner = low + np.floor(rng.uniform(0, 1, sizes.shape) * (high - low + 1))
    drawn = corner + (patch - 1) / 2
    return drawn if known is None else np.where(np.isnan(known), drawn, known)


def draw_views(
    rng: np.random.Generator,
    sizes: NDArray[np.int64],
    channels: int,
    patch_size: tuple[int, int],
    settings: ViewSettings,
    centre: NDArray[np.float64] | None = None,
) -> Views:
    """Draw one view per slice.

    The patch lies about a centre, moved by the translation. A source point is
    `centre + rotation @ scale @ flip @ (point + translation)`: the translation is scaled and rotated with the patch, as
    in the paper's code.

    Args:
        rng: Source of randomness. Each view takes the same number of draws, whatever the settings' probabilities.
        sizes: (N, 2) rows and columns of each slice.
        channels: Channels of the slices; intensities vary per channel.
        patch_size: Rows and columns of the view.
        settings: Strength of the augmentation.
        centre: (N, 2) row and column, see `draw_centres`; by default drawn for patches of this size. Views of the same
            part of a slice share it.

    >>> views = draw_views(np.random.default_rng(0), np.array([[40, 50]] * 3), 1, (32, 32), ViewSettings())
    >>> len(views), tuple(views.matrix.shape), tuple(views.brightness.shape)
    (3, (3, 2, 3), (3, 1))
    """
    n = len(sizes)

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return rng.uniform(low, high, (n, *shape))

    if centre is None:
        centre = draw_centres(rng, sizes, patch_size)
    angle = np.deg2rad(uniform(-settings.rotation, settings.rotation))
    zoom = uniform(*settings.scale)
    flip = np.where(uniform(0, 1, 2) < settings.flip, -1.0, 1.0)
    translation = uniform(-settings.translation, settings.translation, 2) * np.asarray(patch_size)

    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # (N, 2, 2)
    linear = rotation * (zoom[:, None] * flip)[:, None, :]
    offset = centre + np.einsum("nij,nj->ni", linear, translation)
    matrix = np.concatenate([linear, offset[..., None]], -1)

    noisy = uniform(0, 1) < settings.noise
    noise_sigma = np.where(noisy, uniform(*settings.noise_sigma), 0.0)
    noise_seed = rng.integers(0, 2**31, n)
    blurred = uniform(0, 1) < settings.blur
    blur_sigma = np.where(blurred[:, None], uniform(*settings.blur_sigma, 2), 0.0)
    brightness = uniform(*settings.brightness, channels)
    shift = uniform(-settings.shift, settings.shift, channels)
    gamma = uniform(*settings.gamma, channels)
    applied = uniform(0, 1, 4) < (
        settings.brightness_probability,
        settings.shift_probability,
        settings.gamma_probability,
        settings.solarise,
    )
    return _neutral_views(
        n,
        channels,
        matrix=matrix,
        noise_sigma=noise_sigma,
        noise_seed=noise_seed,
        blur_sigma=blur_sigma,
        brightness=np.where(applied[:, :1], brightness, 1.0),
        shift=np.where(applied[:, 1:2], shift, 0.0),
        gamma=np.where(applied[:, 2:3], gamma, 1.0),
        solarise=applied[:, 3],
    )


def draw_resized_crops(
    rng: np.random.Generator,
    sizes: NDArray[np.int64],
    channels: int,
    patch_size: tuple[int, int],
    settings: CropSettings,
) -> Views:
    """Draw one random resized crop per slice: a box of random area and shape anywhere inside it, fitted to the patch.

    A box that does not fit is drawn again, ten times at most. Then it is the largest centred one of an allowed shape
    (torchvision's RandomResizedCrop).

    Args:
        rng: Source of randomness.
        sizes: (N, 2) rows and columns of each slice.
        channels: Channels of the slices; all share one change of intensity.
        patch_size: Rows and columns of the view.
        settings: Strength of the augmentation.

    >>> crops = draw_resized_crops(np.random.default_rng(0), np.array([[64, 64]] * 3), 1, (32, 32), CropSettings())
    >>> bool((crops.matrix[:, 0, 0] <= 2).all())  # pixels of the slice per pixel of the view
    True
    """
    n = len(sizes)
    area = rng.uniform(*settings.area, (n, 10)) * sizes.prod(1)[:, None]
    narrow, wide = np.log(settings.ratio)
    ratio = np.exp(rng.uniform(narrow, wide, (n, 10)))
    box = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], -1).round()  # (N, 10, 2)
    fits = ((box >= 1) & (box <= sizes[:, None])).all(-1)
    chosen = box[np.arange(n), fits.argmax(1)]
    narrowest = np.clip(sizes[:, 1] / sizes[:, 0], *settings.ratio)
    columns = np.minimum(sizes[:, 1], sizes[:, 0] * narrowest)
    centred = np.stack([columns / narrowest, columns], -1).round()
    found = fits.any(1)[:, None]
    chosen = np.where(found, chosen, centred)
    place = np.where(found, rng.random((n, 2)), 0.5)
    corner = np.floor(place * (sizes - chosen + 1))
    zoom = chosen / np.asarray(patch_size)
    zoom[:, 1] *= np.where(rng.random(n) < settings.flip, -1.0, 1.0)
    centre = corner + (chosen - 1) / 2
    matrix = np.concatenate([zoom[..., None] * np.eye(2), centre[..., None]], -1)
    jittered = rng.random((n, 1)) < settings.jitter
    gain, contrast = (
        np.where(jittered, rng.uniform(*factors, (n, 1)), 1.0).repeat(channels, 1)
        for factors in (settings.gain, settings.contrast)
    )
    return _neutral_views(n, channels, matrix=matrix, gain=gain, contrast=contrast)


def _neutral_views(n: int, channels: int, **given: NDArray[Any]) -> Views:
    """Make views that change no intensity beyond what is given."""
    neutral = {
        "noise_sigma": np.zeros(n),
        "noise_seed": np.zeros(n, np.int64),
        "blur_sigma": np.zeros((n, 2)),
        "shift": np.zeros((n, channels)),
        "solarise": np.zeros(n, bool),
        **{name: np.ones((n, channels)) for name in ("gain", "contrast", "brightness", "gamma")},
    }
    columns = {}
    for name, values in {**neutral, **given}.items():
        column = torch.from_numpy(values)
        columns[name] = column.float() if column.is_floating_point() else column
    return Views(**columns)


def apply_views(
    slices: Tensor, sizes: Tensor, views: Views, patch_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Make the views: one bicubic interpolation, then the intensity steps in the order of de Mooij et al.

    The steps are noise, blur, brightness, shift, gamma and solarisation. The last turns values about the slice's
    largest one. Theirs turns them about the subject's, which nnU-Net's preprocessing by frame does not know.

    Pixels outside the slice are 0 before and after the intensity steps: nnU-Net's padding after normalisation.

    Args:
        slices: (N, C, X, Y) on the device, each slice in the top left corner, with 0 beyond its size.
        sizes: (N, 2) rows and columns of each slice, on the device.
        views: N rows, on the host.
        patch_size: Rows and columns of the result.

    Returns:
        Views (N, C, *patch_size), float32, and where they lie inside the slice (N, 1, *patch_size), bool.

    >>> sizes = np.array([[40, 50]])
    >>> views = draw_views(np.random.default_rng(0), sizes, 1, (32, 24), ViewSettings())
    >>> [tuple(x.shape) for x in apply_views(torch.rand(1, 1, 40, 50), torch.from_numpy(sizes), views, (32, 24))]
    [(1, 1, 32, 24), (1, 1, 32, 24)]
    """
    device = slices.device
    row, column = _source_points(views.matrix.to(device, non_blocking=True), patch_size)
    height, width = (sizes - 0.5)[:, :, None, None].unbind(1)
    inside = (row > -0.5) & (row < height) & (column > -0.5) & (column < width)
    inside = inside[:, None]
    x = _sample(slices.float(), row, column)

    # The host knows which views are noisy or blurred: choosing them needs no synchronisation.
    noisy = views.noise_sigma.nonzero()[:, 0]
    if len(noisy):
        noise = counter_normal(views.noise_seed[noisy].to(device, non_blocking=True), x.shape[1:])
        sigma = views.noise_sigma[noisy].to(device, non_blocking=True)
        x = x.index_add(0, noisy.to(device, non_blocking=True), noise * sigma[:, None, None, None])
    blurred = views.blur_sigma[:, 0].nonzero()[:, 0]
    if len(blurred):
        rows = blurred.to(device, non_blocking=True)
        x = x.index_copy(0, rows, gaussian_blur(x[rows], views.blur_sigma[blurred]))

    def to_pixels(parameter: Tensor) -> Tensor:
        """Move (N, C) or (N,) on the host to (N, C or 1, 1, 1) on the device."""
        return parameter.to(device, non_blocking=True).reshape(len(parameter), -1, 1, 1)

    # As on a picture whose darkest value is 0; for linear factors their order does not matter.
    if (views.gain != 1).any() or (views.contrast != 1).any():
        dark = x.amin((2, 3), keepdim=True)
        x = dark + (x - dark) * to_pixels(views.gain)
        mean = x.mean((2, 3), keepdim=True)
        x = mean + (x - mean) * to_pixels(views.contrast)
    x = x * to_pixels(views.brightness) + to_pixels(views.shift)
    if (views.gamma != 1).any():
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        spread = high - low
        x = ((x - low) / (spread + 1e-7)).pow(to_pixels(views.gamma)) * spread + low
    if views.solarise.any():
        largest = slices.float().amax((2, 3), keepdim=True)
        turned = to_pixels(views.solarise) & (x > 0)
        x = torch.where(turned, largest - x, x)
    return x * inside, inside


def counter_normal(seeds: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Return standard normal values that depend on (seed, position) only: on every device, in every chunk the same.

    Each value takes two rounds of a 32-bit integer hash, then Box-Muller.

    Args:
        seeds: (N,) int64.
        shape: Shape of one sample.

    Returns:
        (N, *shape), float32.

    >>> noise = counter_normal(torch.tensor([5, 7]), (100, 100))
    >>> torch.equal(noise[1:], counter_normal(torch.tensor([7]), (100, 100))), round(noise.std().item(), 1)
    (True, 1.0)
    """
    position = torch.arange(math.prod(shape), device=seeds.device)
    bits = _hash(position + _hash(seeds)[:, None])
    u1 = (bits >> 8).float().add(0.5).mul(2.0**-24)  # in (0, 1)
    u2 = (_hash(bits ^ 0x5BF03635) >> 8).float().mul(2.0**-24)
    return (u1.log().mul(-2).sqrt() * (u2 * (2 * math.pi)).cos()).reshape(len(seeds), *shape)


def _hash(x: Tensor) -> Tensor:
    """Hash the low 32 bits of int64 with lowbias32 (Wellons, "Prospecting for hash functions")."""
    x = x & 0xFFFFFFFF
    x = ((x >> 16) ^ x) * 0x7FEB352D & 0xFFFFFFFF
    x = ((x >> 15) ^ x) * 0x846CA68B & 0xFFFFFFFF
    return (x >> 16) ^ x


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own width along rows and columns.

    The kernel is the Gaussian integrated over each pixel ("erf"), cut at 4 standard deviations, as MONAI's. The
    border is replicated: zeros there, as in the paper's code, would darken the edges of every blurred view.

    Args:
        x: (N, C, X, Y).
        sigma: (N, 2) pixels along rows and columns, on the host.

    >>> torch.allclose(gaussian_blur(torch.ones(1, 1, 8, 8), torch.tensor([[1.0, 2.0]])), torch.ones(1, 1, 8, 8))
    True
    """
    n, c, height, width = x.shape
    radius = max(1, math.ceil(BLUR_TRUNCATION * float(sigma.max())))
    t = torch.arange(-radius, radius + 1, dtype=torch.float32)
    scaled = 1 / (math.sqrt(2) * sigma[..., None].clamp_min(1e-3))  # (N, 2, 1)
    kernel = torch.erf((t + 0.5) * scaled) - torch.erf((t - 0.5) * scaled)
    # Each image ends its own kernel, so that it does not depend on its neighbours' widths.
    kernel = kernel * (t.abs() <= (BLUR_TRUNCATION * sigma[..., None] + 0.5).floor())
    kernel = (kernel / kernel.sum(-1, keepdim=True)).to(x.device, non_blocking=True)  # (N, 2, 2r+1)
    rows, columns = kernel.repeat_interleave(c, 0).unbind(1)
    flat = F.pad(x.reshape(1, n * c, height, width), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, rows[:, None, :, None], groups=n * c)
    flat = F.conv2d(flat, columns[:, None, None, :], groups=n * c)
    return flat.reshape(x.shape)


def _source_points(matrix: Tensor, patch_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Map (N, 2, 3) to row and column, (N, *patch_size) each, of the slice pixel that each view pixel shows."""
    height, width = patch_size
    row = torch.arange(height, device=matrix.device)[:, None] - (height - 1) / 2
    column = torch.arange(width, device=matrix.device) - (width - 1) / 2
    terms = matrix[..., None, None].unbind(1)  # of (N, 3, 1, 1)
    rows, columns = (row * t[:, 0] + column * t[:, 1] + t[:, 2] for t in terms)
    return rows, columns


def _sample(slices: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Sample (N, C, X, Y) at pixels (N, H, W), 0 outside, with torch's bicubic kernel (a = -0.75)."""
    height, width = slices.shape[2:]
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], -1)
    if slices.device.type == "mps":  # torch has no bicubic interpolation there
        sampled = F.grid_sample(slices.cpu(), grid.cpu(), mode="bicubic", align_corners=False)
        return sampled.to(slices.device)
    return F.grid_sample(slices, grid, mode="bicubic", align_corners=False)
