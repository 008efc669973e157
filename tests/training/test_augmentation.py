"""De Mooij et al.'s augmentation, composed as nnU-Net composes it and through nnU-Net's own loader."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import stats
from torch import Tensor

from nnunet_ssp.training.augmentation import (
    FULL_TURN,
    CineAugmentation,
    NoAugmentation,
    loaded_size,
)

PATCH = (32, 24)
LOADED, MOVEMENT = loaded_size(PATCH)
GEOMETRY = ["SpatialTransform", "MirrorTransform"]
INTENSITY = [
    "GaussianNoiseTransform",
    "GaussianBlurTransform",
    "MultiplicativeBrightnessTransform",
    "Shift",
    "GammaTransform",
]


@pytest.fixture(autouse=True)
def seeds() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


def transforms(patch: tuple[int, int] = PATCH, **options: Any) -> dict[str, Any]:
    """The steps by name, as nnU-Net's `get_dataloaders` asks for them."""
    options = {"use_mask_for_norm": [False], "foreground_labels": [1, 2, 3], **options}
    scales = options.pop("scales", [[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]])
    made = CineAugmentation.get_training_transforms(
        list(patch), FULL_TURN, scales, (0, 1), False, **options
    )
    assert isinstance(made, ComposeTransforms)
    steps = {type(getattr(step, "transform", step)).__name__: step for step in made.transforms}
    assert len(steps) == len(made.transforms)
    return steps


def positions(size: list[int]) -> Tensor:
    """(3, *size): row, column, and 1."""
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    return torch.stack([rows, columns, torch.ones_like(rows)]).float()


def apply(steps: dict[str, Any], image: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    done = ComposeTransforms(list(steps.values()))(image=image.clone(), segmentation=mask.clone())
    return done["image"], done["segmentation"]


def geometries(n: int, size: list[int] = LOADED) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Affine maps that were drawn, (2, 3) from a pixel and its distance to the patch's centre; image; mask."""
    steps = {name: step for name, step in transforms().items() if name in GEOMETRY}
    image = positions(size)
    mask = torch.zeros(1, *size, dtype=torch.int16)
    mask[0] = (image[0] // 8 * 100 + image[1] // 8).to(mask.dtype)
    centred = positions(list(PATCH))[:2] - (torch.tensor(PATCH)[:, None, None] - 1) / 2
    design = torch.cat([centred.reshape(2, -1), torch.ones(1, math.prod(PATCH))]).double()
    for _ in range(n):
        seen, labels = apply(steps, image, mask)
        values = seen[:2].reshape(2, -1).double()
        affine = (values @ torch.linalg.pinv(design)).numpy()
        # All of it is one affine map (torch's kernel bends a ramp by up to 0.1 pixels), inside of what was loaded.
        assert np.abs(affine @ design.numpy() - values.numpy()).max() < 0.1
        assert (seen[2] - 1).abs().max() < 1e-4
        yield affine, seen, labels


# -- geometry --------------------------------------------------------------------------------------


def test_image_and_mask_move_together():
    for _, seen, labels in geometries(20):
        row, column = (seen[:2] + 0.5).floor()
        expected = row // 8 * 100 + column // 8
        # Where the nearest pixel is not a matter of rounding.
        clear = ((seen[:2] - seen[:2].floor() - 0.5).abs() > 0.1).all(0)
        assert clear.float().mean() > 0.4
        assert torch.equal(labels[0][clear].float(), expected[clear])


def test_angles_scales_flips_and_movements():
    affine = np.stack([affine for affine, _, _ in geometries(500)])
    linear, centre = affine[:, :, :2], affine[:, :, 2]
    determinant = np.linalg.det(linear)
    scale = np.sqrt(np.abs(determinant))
    # A rotation, perhaps a flip, and one scale for both axes.
    gram = np.einsum("nij,nik->njk", linear, linear) / (scale**2)[:, None, None]
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(2), gram.shape), atol=0.01)
    assert stats.kstest(scale, stats.uniform(0.7, 0.7).cdf).pvalue > 0.01  # uniform in 0.7 to 1.4
    assert 0.695 < scale.min() < 0.72 and 1.38 < scale.max() < 1.405
    angle = np.arctan2(linear[:, 1, 0], linear[:, 0, 0])
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01
    assert stats.binomtest(int((determinant < 0).sum()), len(affine)).pvalue > 0.01  # one flip
    middle = (np.array(LOADED) - 1) / 2
    for moved, largest in zip((centre - middle).T, (40 / 256 * np.array(PATCH)), strict=True):
        assert np.abs(moved).max() < largest + 0.05
        assert stats.kstest(moved, stats.uniform(-largest, 2 * largest).cdf).pvalue > 0.01


@pytest.mark.parametrize("patch", [(256, 256), (224, 160), (64, 256), (33, 47)])
@pytest.mark.parametrize("side", ["low", "high"])
def test_no_corner_lies_outside(patch, side, monkeypatch):
    """The largest scale, the largest movement, and the diagonal along an axis."""
    step = transforms(patch)["SpatialTransform"]
    size, _ = loaded_size(patch)
    monkeypatch.setattr(
        np.random,
        "uniform",
        lambda low=0, high=1: 0.5 if (low, high) == (0, 1) else low if side == "low" else high,
    )
    step.scaling = step.scaling[1]
    diagonal = math.atan2(patch[1], patch[0])
    for angle in (diagonal, -diagonal, math.pi / 2 - diagonal, math.pi / 2 + diagonal):
        step.rotation = angle
        seen, mask = apply(
            {"": step}, torch.ones(1, *size), torch.ones(1, *size, dtype=torch.int16)
        )
        assert seen.shape[1:] == patch
        assert (seen - 1).abs().max() < 1e-4, angle
        assert (mask == 1).all()


def test_what_lies_outside_the_slice_is_nothing():
    """0 in the image, and not yet a label in the mask."""
    steps = {name: step for name, step in transforms().items() if name in GEOMETRY}
    image = torch.ones(1, *LOADED)
    mask = torch.full((1, *LOADED), 2, dtype=torch.int16)
    image[:, : LOADED[0] // 2], mask[:, : LOADED[0] // 2] = 0, -1
    seen, labels = apply(steps, image, mask)
    assert set(labels.unique().tolist()) == {-1, 2}
    assert (seen[labels == -1] < 0.6).all() and (seen[labels == 2] > 0.4).all()


# -- intensity -------------------------------------------------------------------------------------


def draws(name: str, image: Tensor, n: int = 1500) -> Tensor:
    step = transforms()[name]
    return torch.stack([step(image=image.clone())["image"] for _ in range(n)])


def is_uniform(values: Any, low: float, high: float) -> bool:
    values = np.asarray(values, dtype=np.float64)
    inside = values.min() > low - 1e-4 and values.max() < high + 1e-4
    return bool(inside and stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.01)


def is_a_fifth(chosen: Tensor) -> bool:
    return bool(stats.binomtest(int(chosen.sum()), len(chosen), 0.2).pvalue > 0.01)


def test_the_order_of_the_steps():
    names = list(transforms(regions=[(1, 2, 3), (2,)], use_mask_for_norm=[True]))
    last = ["MaskImageTransform", "RemoveLabelTransform", "ConvertSegmentationToRegionsTransform"]
    assert names == [*GEOMETRY, *INTENSITY, *last, "DownsampleSegForDSTransform"]


def test_noise():
    noise = draws("GaussianNoiseTransform", torch.zeros(1, 64, 64)).flatten(1)
    noisy = noise.abs().amax(1) > 0
    assert is_a_fifth(noisy)
    sigma = noise[noisy].std(1)
    assert sigma.max() < 0.21
    assert stats.kstest(sigma, stats.uniform(0, 0.2).cdf).pvalue > 0.01


def test_blur():
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1
    seen = draws("GaussianBlurTransform", point)[:, 0]
    blurred = seen[:, 15, 15] < 1
    assert is_a_fifth(blurred)
    seen = seen[blurred]
    torch.testing.assert_close(seen.sum((1, 2)), torch.ones(len(seen)))
    distance = (torch.arange(31) - 15).float().square()
    rows, columns = seen.sum(2) @ distance, seen.sum(1) @ distance
    # Variances of kernels that end, of widths 0.5 to 1.5, drawn apart.
    for variance in (rows, columns):
        assert 0.15 < variance.min() < 0.4 and 1.5 < variance.max() <= 2.25
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2


def test_brightness_shift_and_gamma_always_change_each_channel_apart():
    brightness = draws("MultiplicativeBrightnessTransform", torch.ones(2, 1, 1))[:, :, 0, 0]
    shift = draws("Shift", torch.full((2, 2, 3), 3.0)) - 3
    assert torch.equal(shift, shift[:, :, :1, :1].expand_as(shift))
    ramp = torch.linspace(-1, 3, 5).expand(2, 1, 5)
    curved = draws("GammaTransform", ramp)
    torch.testing.assert_close(curved[..., 0], torch.full_like(curved[..., 0], -1))
    torch.testing.assert_close(curved[..., -1], torch.full_like(curved[..., -1], 3))
    gamma = ((curved[:, :, 0, 2] + 1) / 4).log() / math.log(0.5)
    for values, low, high in (
        (brightness, 0.6, 1.5),  # as meant: their code multiplies by 1.6 to 2.5
        (shift[:, :, 0, 0], -0.4, 0.4),
        (gamma, 0.7, 1.5),
    ):
        assert all(is_uniform(channel, low, high) for channel in values.T)
        assert abs(np.corrcoef(*values.T)[0, 1]) < 0.1


def test_a_constant_image_stays_one():
    seen = draws("GammaTransform", torch.full((1, 4, 4), 2.0), n=5)
    assert torch.equal(seen, torch.full_like(seen, 2.0))


# -- what follows ----------------------------------------------------------------------------------


@pytest.fixture
def slice_with_mask() -> tuple[Tensor, Tensor]:
    """Return what nnU-Net's loader hands on: a slice in its padding, -1 there."""
    image = torch.randn(2, *LOADED)
    mask = torch.randint(0, 4, (1, *LOADED), dtype=torch.int16)
    border = torch.ones(LOADED, dtype=torch.bool)
    border[20:40, 15:40] = False
    image[:, border], mask[:, border] = 0, -1
    return image, mask


def test_targets_for_deep_supervision_hold_labels_only(slice_with_mask):
    steps = transforms()
    for _ in range(20):
        image, targets = apply(steps, *slice_with_mask)
        assert image.shape == (2, *PATCH) and image.dtype == torch.float32
        assert image.isfinite().all()
        assert [tuple(t.shape) for t in targets] == [(1, 32, 24), (1, 16, 12), (1, 8, 6)]
        assert all(t.dtype == torch.int16 and t.min() >= 0 and t.max() <= 3 for t in targets)
        for fine, coarse in pairwise(targets):
            assert set(coarse.unique().tolist()) <= set(fine.unique().tolist())


def test_without_deep_supervision_there_is_one_target(slice_with_mask):
    _, target = apply(transforms(scales=None), *slice_with_mask)
    assert target.shape == (1, *PATCH)


def test_regions_and_the_ignored_label(slice_with_mask):
    image, mask = slice_with_mask
    options = {"regions": [(1, 2, 3), (2,)], "ignore_label": 3, "scales": None}
    _, target = apply(transforms(**options), image, mask)
    assert target.shape == (3, *PATCH) and target.dtype == torch.bool
    whole, inner, ignored = target
    assert (whole | ~inner).all() and (whole | ~ignored).all() and not (inner & ignored).any()
    assert whole.any() and not whole.all()


def test_outside_of_the_mask_is_zero_for_the_channels_normalised_in_it(slice_with_mask):
    steps = transforms(use_mask_for_norm=[True, False])
    del steps["RemoveLabelTransform"], steps["DownsampleSegForDSTransform"]
    image, labels = apply(steps, *slice_with_mask)
    outside = labels[0] == -1
    assert outside.any() and not outside.all()
    assert (image[0, outside] == 0).all() and (image[0, ~outside] != 0).any()
    assert (image[1, outside] != 0).all()  # brightness, shift and gamma have changed it


def test_no_augmentation_is_nnunets_own(slice_with_mask):
    arguments = (PATCH, FULL_TURN, [[1.0, 1.0], [0.5, 0.5]], None, False)
    steps = NoAugmentation.get_training_transforms(*arguments, foreground_labels=[1, 2, 3])
    image, mask = slice_with_mask
    done = steps(image=image.clone(), segmentation=mask.clone())
    assert torch.equal(done["image"], image)
    assert torch.equal(done["segmentation"][0], mask.clamp_min(0))


# -- nnU-Net's loader ------------------------------------------------------------------------------


class Cases:
    """Cases as nnU-Net's loader reads them: one case whose slices hold the rows and columns of their pixels."""

    def __init__(self, rows: int, columns: int) -> None:
        self.identifiers = ["case"]
        place = positions([rows, columns])
        self.data = place[:, None].repeat(1, 3, 1, 1).numpy()
        self.mask = (place[:1, None] // 4 % 4).repeat(1, 3, 1, 1).numpy().astype(np.int16)

    def load_case(self, identifier: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        found = {label: np.argwhere(self.mask == label) for label in (1, 2, 3)}
        return self.data, self.mask, None, {"class_locations": found}


class Labels:
    all_labels = [0, 1, 2, 3]  # noqa: RUF012  # nnU-Net adds it to a list
    has_ignore_label = False


def loader(cases: Cases, size: Any, steps: Any = None) -> nnUNetDataLoader:
    return nnUNetDataLoader(cases, 4, size, PATCH, Labels(), 0.33, transforms=steps)


def test_a_batch_of_nnunets_loader():
    steps = ComposeTransforms(list(transforms().values()))
    batch = next(loader(Cases(50, 40), LOADED, steps))
    assert batch["data"].shape == (4, 3, *PATCH)
    assert [tuple(t.shape) for t in batch["target"]] == [
        (4, 1, 32, 24),
        (4, 1, 16, 12),
        (4, 1, 8, 6),
    ]
    assert set(batch["target"][0].unique().tolist()) <= {0, 1, 2, 3}
    assert len(batch["target"][0].unique()) > 1


@pytest.mark.parametrize("size", [(50, 40), (20, 60), (32, 24), (9, 7)])
@pytest.mark.parametrize("foreground", [False, True])
def test_patches_lie_where_nnunets_do(size, foreground):
    """The larger piece that is loaded has the same centres as a patch of nnU-Net's."""
    cases = Cases(*size)
    *_, properties = cases.load_case("case")
    ranges = []
    for loaded in (LOADED, get_patch_size(PATCH, FULL_TURN, FULL_TURN, FULL_TURN, (0.85, 1.25))):
        made = loader(cases, [int(side) for side in loaded])
        boxes = [
            made.get_bbox((3, *size), foreground, properties["class_locations"]) for _ in range(600)
        ]
        centres = np.array([np.add(*box) / 2 for box in boxes])[:, 1:]
        ranges.append((centres.min(0), centres.max(0), centres.mean(0)))
    for ours, stock in zip(*ranges, strict=True):
        np.testing.assert_allclose(ours, stock, atol=1.5)


def test_the_trainer_asks_for_what_is_needed():
    class Trainer(CineAugmentation):
        def __init__(self) -> None:
            self.local_rank = 1  # writes no log
            self.configuration_name = "2d"
            self.configuration_manager = type("", (), {"patch_size": [64, 160]})

    trainer = Trainer()
    found = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    # nnU-Net turns a long patch by 15 degrees at most.
    assert found == (FULL_TURN, False, loaded_size((64, 160))[0], (0, 1))
    assert trainer.inference_allowed_mirroring_axes == (0, 1)
    trainer.configuration_manager.patch_size = [16, 64, 64]
    with pytest.raises(ValueError, match=r"configuration \(=2d\) must be 2D: Trainer has the"):
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()


def test_the_signature_is_nnunets():
    import inspect

    ours = inspect.signature(CineAugmentation.get_training_transforms).parameters
    assert list(ours) == list(inspect.signature(nnUNetTrainer.get_training_transforms).parameters)
