"""Linear segmentation probe of an encoder: whether its features carry anatomy, cheap enough for every few epochs.

Encoder-only pretraining has no output to look at, and its loss says little about segmentation. The probe fits one
linear layer in closed form from the encoder's feature maps to the labels of a few slices. Its score is the Dice on
slices of other subjects. The encoder does not change: no gradient is taken and no statistics are updated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ssp.slices.store import is_preprocessed

T = TypeVar("T")

STAGE = 2  # from 0; gives the resolution of the regression, a quarter of the patch in most plans
CHUNK = 4  # slices per forward
RIDGE = 1e-3  # of the mean variance of the standardised features
CONSTANT = 1e-5  # of a feature's mean; smaller standard deviations are rounding errors
# The weight of a pixel is its class's share of all pixels to the power of -BALANCE. With 0, background outweighs small
# structures and the argmax hardly finds them; with 1, these spill over their edges.
BALANCE = 0.5
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ProbeData:
    """Labelled slices, some to fit on and the others to score on.

    Attributes:
        images: (n, C, X, Y) float32, preprocessed.
        labels: (n, X, Y) int64; 0 is background, i the i-th requested label.
        fit: (n,) bool; True for slices to fit on.
        cases: Name of each slice's case.
        by_subject: Whether no subject is on both sides; False for a single subject, whose slices alternate.
    """

    images: Tensor
    labels: Tensor
    fit: Tensor
    cases: tuple[str, ...]
    by_subject: bool


def labelled_slices(
    folder: Path,
    cases: Mapping[str, str],
    patch_size: Sequence[int],
    labels: Sequence[int],
    n: int = 32,
) -> ProbeData | None:
    """Pick slices with foreground, evenly over subjects, then over cases, then along the stack.

    The same arguments give the same slices. Each is cropped or padded with 0 about its centre, and must have foreground
    within the patch. At most `4 n` cases are read, and few more than `n` if most have foreground.

    Args:
        folder: nnU-Net's `<data_identifier>` folder.
        cases: Subject of each labelled case on the training side of the fold.
        patch_size: (X, Y) in pixels.
        labels: Values of the foreground classes; every other value, including -1, is background.
        n: Largest number of slices.

    Returns:
        The slices, sorted by subject, case and position; None when fewer than two have foreground.

    Raises:
        ValueError: `n` is below 2, labels are not positive or occur twice, or a case cannot be read.
    """
    if n < 2:
        raise ValueError(f"`n` (={n}) must be at least 2: one slice to fit on and one to score on.")
    if len(set(labels)) < len(labels) or any(label < 1 for label in labels):
        raise ValueError(f"`labels` (={list(labels)}) must be positive and occur only once.")
    if not cases:
        return None
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(str(folder), list(cases))
    masks: dict[str, Tensor] = {}

    def foreground(case: str, number: int) -> Iterator[tuple[str, int]]:
        if len(masks) == 4 * n:
            return
        mask = _centred(_read(dataset, folder, case, 1)[0], patch_size)
        masks[case] = torch.zeros(mask.shape, dtype=torch.int64)
        for i, label in enumerate(labels, 1):
            masks[case][mask == label] = i
        slices = masks[case].flatten(1).any(1).nonzero().flatten().tolist()
        yield from ((case, position) for position in _spread(slices, number))

    hands = []
    for i, subject in enumerate(_spread(sorted(set(cases.values())), 0)):
        own = _spread(sorted(case for case in cases if cases[case] == subject), i)
        hands.append([(case, i * len(own) + j) for j, case in enumerate(own)])
    dealt = islice(_deal(_deal(foreground(*case) for case in hand) for hand in hands), n)
    picked = sorted(dealt, key=lambda place: (cases[place[0]], *place))
    if len(picked) < 2:
        return None

    images = [_read(dataset, folder, case, 0, position) for case, position in picked]
    found = sorted({cases[case] for case, _ in picked})
    by_subject = len(found) > 1
    fit = [
        (found.index(cases[case]) if by_subject else row) % 2 == 0
        for row, (case, _) in enumerate(picked)
    ]
    return ProbeData(
        torch.stack([_centred(image, patch_size) for image in images]).float(),
        torch.stack([masks[case][position] for case, position in picked]),
        torch.tensor(fit),
        tuple(case for case, _ in picked),
        by_subject,
    )


def _read(dataset: Any, folder: Path, case: str, which: int, position: int | None = None) -> Tensor:
    """Return image (`which` 0) or mask (1) of a case: (C, S, X, Y), or (C, X, Y) of one slice."""
    try:
        array = dataset.load_case(case)[which]
        return torch.from_numpy(np.array(array[:] if position is None else array[:, position]))
    except Exception as error:  # blosc2, numpy and pickle raise many kinds
        raise ValueError(f"{folder / case}: cannot be read ({error}).") from error


def _centred(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop or pad the last two axes about the centre; a negative pad crops."""
    pads = []
    for side, wanted in zip(reversed(x.shape[-2:]), reversed(size), strict=True):
        before = (wanted - side) // 2
        pads += [before, wanted - side - before]
    return F.pad(x, pads)


def _spread(items: Sequence[T], number: int) -> list[T]:
    """Order items so that any first few are spread evenly over all; each `number` starts at another place."""
    start = int(number * GOLDEN % 1 * len(items))
    turned = [*items[start:], *items[:start]]
    bits = len(items).bit_length()
    return [turned[i] for i in sorted(range(len(items)), key=lambda i: f"{i:0{bits}b}"[::-1])]


def _deal(hands: Iterable[Iterable[T]]) -> Iterator[T]:
    """Yield one item of each hand in turn until all are empty; take nothing from a hand before its turn."""
    turns = deque(map(iter, hands))
    while turns:
        hand = turns.popleft()
        for item in hand:
            yield item
            turns.append(hand)
            break


class LinearProbe:
    """Score encoders by how well a linear layer segments with their features.

    Args:
        data: Slices from `labelled_slices`.
        device: Device of the encoders.
    """

    def __init__(self, data: ProbeData, device: torch.device) -> None:
        self.classes = int(data.labels.max()) + 1
        self.fit, self.held_out = (
            [
                (images.to(device), labels.to(device))
                for images, labels in zip(
                    data.images[side].split(CHUNK), data.labels[side].split(CHUNK), strict=True
                )
            ]
            for side in (data.fit, ~data.fit)
        )
        pixels = data.labels[data.fit].flatten().bincount(minlength=self.classes)
        weight = (pixels / pixels.sum()).pow(-BALANCE).where(pixels > 0, 0)
        self.class_weight = weight.to(device)

    @torch.no_grad()
    def score(self, encoder: nn.Module) -> float:
        """Return the Dice of a linear layer on the features, fitted on one part of the slices, on the other part.

        The forward runs in evaluation mode under the caller's autocast and leaves the encoder unchanged. All maps are
        resampled to the resolution of the third stage (the last, if there are fewer). There a ridge regression with
        intercept predicts the share of each class in each pixel. The weight of a pixel is one over the square root of
        its class's share.

        Args:
            encoder: Maps images (B, C, X, Y) to a list of feature maps, finest first, as nnU-Net's encoders do.

        Returns:
            Dice at full resolution, 0 to 1: of each foreground class over all scored pixels, then the mean over the
            classes in the scored slices. NaN if they have none, or if the fitted features are not finite.
        """
        modes = [(module, module.training) for module in encoder.modules()]
        encoder.eval()
        try:
            layer = self._layer(encoder)
            return float("nan") if layer is None else self._dice(encoder, *layer)
        finally:
            for module, training in modes:
                module.training = training

    def _layer(self, encoder: nn.Module) -> tuple[Tensor, Tensor] | None:
        """Return weight (classes, features) and bias (classes,) fitted on the fit part, or None if not finite."""
        shift: Tensor | None = None
        moments: Tensor | None = None
        for images, labels in self.fit:
            x = joint_maps(encoder, images)
            if shift is None:  # a point near the mean: a large mean would drown a small variance
                shift = x.mean((0, 2, 3), keepdim=True)
            y = F.one_hot(labels, self.classes).movedim(-1, 1).float()
            y = F.interpolate(y, x.shape[2:], mode="area")
            weight = (y * self.class_weight[:, None, None]).sum(1, keepdim=True)
            rows = torch.cat([x - shift, torch.ones_like(weight), y], 1) * weight.sqrt()
            rows = rows.transpose(0, 1).flatten(1)
            with torch.autocast(images.device.type, enabled=False):
                # float32 within a chunk, float64 over chunks; on the CPU, as not every device has float64.
                part = (rows @ rows.T).cpu().double()
            moments = part if moments is None else moments + part
        assert shift is not None and moments is not None
        if not bool(moments.isfinite().all()):
            return None
        weight, bias = ridge(moments, shift.flatten().cpu().double())
        return weight.to(shift), bias.to(shift)

    def _dice(self, encoder: nn.Module, weight: Tensor, bias: Tensor) -> float:
        overlap, sizes, truth = (torch.zeros(self.classes, dtype=torch.int64) for _ in range(3))
        for images, labels in self.held_out:
            x = joint_maps(encoder, images)
            with torch.autocast(images.device.type, enabled=False):
                logits = torch.einsum("bfxy,cf->bcxy", x, weight) + bias[:, None, None]
            found = F.interpolate(logits, labels.shape[1:], mode="bilinear").argmax(1)
            found, labels = found.cpu(), labels.cpu()
            truth += labels.flatten().bincount(minlength=self.classes)
            sizes += found.flatten().bincount(minlength=self.classes)
            overlap += labels[labels == found].bincount(minlength=self.classes)
        dice = 2 * overlap / (sizes + truth).clamp_min(1)
        return float(dice[1:][truth[1:] > 0].mean())  # the mean of nothing is NaN


def joint_maps(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return the feature maps of all stages, concatenated at one resolution.

    Args:
        encoder: Maps images to a list of feature maps, finest first.
        images: (B, C, X, Y).

    Returns:
        (B, channels of all stages, x, y) float32, at the size of the third stage, or of the last if there are fewer.
    """
    maps = encoder(images)
    at = min(STAGE, len(maps) - 1)
    size = maps[at].shape[2:]
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat(
            [
                F.interpolate(x.float(), size, mode="area" if stage <= at else "bilinear")
                for stage, x in enumerate(maps)
            ],
            1,
        )


def ridge(moments: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Solve a ridge regression on standardised features with a free intercept, from weighted sums of products.

    Args:
        moments: (F + 1 + K, F + 1 + K) float64: Z^T W Z of rows z = (features - shift, 1, targets) and weights W.
        shift: (F,) float64, the shift in z.

    Returns:
        Weight (K, F) and bias (K,) for the features themselves, neither shifted nor standardised.
    """
    n = len(shift)
    mean = moments[n] / moments[n, n]
    covariance = moments / moments[n, n] - mean.outer(mean)
    std = covariance.diagonal()[:n].clamp_min(0).sqrt()
    scale = (1 / std).where(std > CONSTANT * (mean[:n] + shift).abs(), 0)
    system = covariance[:n, :n] * scale.outer(scale)
    system.diagonal().add_(RIDGE * max(float(system.diagonal().mean()), 1e-12))
    weight = torch.linalg.solve(system, scale[:, None] * covariance[:n, n + 1 :]).T * scale
    return weight, mean[n + 1 :] - weight @ (mean[:n] + shift)


def find_probe(
    folder: Path,
    subjects: Mapping[str, str],
    patch_size: Sequence[int],
    labels: Any,
    device: torch.device,
) -> tuple[LinearProbe | None, str]:
    """Build a probe on labelled slices of the training cases, if there are any.

    Args:
        folder: Folder of nnU-Net's preprocessed cases, which holds the labelled ones.
        subjects: Subject of each case of the training side.
        patch_size: (X, Y) in pixels.
        labels: nnU-Net's label manager.
        device: Device of the encoder.

    Returns:
        The probe or None, and what the log should say about it.
    """
    foreground = labels.foreground_labels
    if not foreground or labels.has_regions:
        return None, "No linear probe: this dataset has no labels, or labels that are regions."
    labelled = {
        case: subject for case, subject in subjects.items() if is_preprocessed(folder, case)
    }
    data = labelled_slices(folder, labelled, patch_size, foreground)
    if data is None:
        return None, "No linear probe: fewer than two slices of this fold have labels."
    parted = "other subjects" if data.by_subject else "other slices of the same subject"
    return LinearProbe(data, device), (
        f"Linear probe, a monitor: labels of {len(data.images)} slices of training subjects are read now and then, "
        f"to fit a linear segmentation on the frozen encoder ({int(data.fit.sum())} slices) and to score it on "
        f"{parted}. Training never sees them; probe=no leaves it out."
    )
