"""Does an encoder's representation carry anatomy? A linear segmentation probe, cheap enough for every few epochs.

Encoder-only pretraining has no output to look at, and its loss says little about segmentation. The probe fits one
linear layer in closed form from the encoder's feature maps to the labels of a few slices and gives the Dice of the
slices of other subjects. Nothing of this reaches the encoder: no gradient is taken and no statistics move.
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

from nnunet_ssp.slices.store import PREPROCESSED

T = TypeVar("T")

STAGE = 2  # from 0: the resolution of the regression, a quarter of the patch in most plans
CHUNK = 4  # slices per forward
RIDGE = 1e-3  # of the mean variance of the standardised features
CONSTANT = 1e-5  # of its mean: a feature that varies by less varies by rounding alone
# A pixel weighs its class's share of all pixels to the power of -BALANCE. Unweighted (0), background outweighs small
# structures and the argmax hardly finds them; with equal classes (1) they spill over their edges.
BALANCE = 0.5
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ProbeData:
    """Labelled slices, some to fit on and the others to score on.

    Attributes:
        images: (n, C, X, Y) float32, preprocessed.
        labels: (n, X, Y) int64: 0 is background, i the i-th of the labels asked for.
        fit: (n,) bool: which slices to fit on.
        cases: name of each slice's case.
        by_subject: whether no subject is on both sides; False when there is only one, whose slices alternate.
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

    The same arguments give the same slices. Each is cropped or padded with 0 about its centre, and it is the part
    within the patch that must have foreground. At most ``4 n`` cases are read; few more than ``n`` where most cases
    have foreground.

    Args:
        folder: nnU-Net's `<data_identifier>` folder.
        cases: subject of each labelled case, all of them of the training side of the fold.
        patch_size: (X, Y) in pixels.
        labels: values of the foreground classes; every other value, -1 too, is background.
        n: how many slices to pick at most.

    Returns:
        The slices, sorted by subject, case and position; None when fewer than two have foreground.

    Raises:
        ValueError: ``n`` below 2, labels that are not positive or occur twice, or a case that cannot be read.
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
    """Image (``which`` 0) or mask (1) of a case: (C, S, X, Y), or (C, X, Y) of one slice."""
    try:
        array = dataset.load_case(case)[which]
        return torch.from_numpy(np.array(array[:] if position is None else array[:, position]))
    except Exception as error:  # blosc2, numpy and pickle each have their own
        raise ValueError(f"{folder / case}: cannot be read ({error}).") from error


def _centred(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop or pad the last two axes about the centre; a negative pad crops."""
    pads = []
    for side, wanted in zip(reversed(x.shape[-2:]), reversed(size), strict=True):
        before = (wanted - side) // 2
        pads += [before, wanted - side - before]
    return F.pad(x, pads)


def _spread(items: Sequence[T], number: int) -> list[T]:
    """Order items so that any first few are spread evenly over all; each number starts at another place."""
    start = int(number * GOLDEN % 1 * len(items))
    turned = [*items[start:], *items[:start]]
    bits = len(items).bit_length()
    return [turned[i] for i in sorted(range(len(items)), key=lambda i: f"{i:0{bits}b}"[::-1])]


def _deal(hands: Iterable[Iterable[T]]) -> Iterator[T]:
    """One item of each in turn until all are used up; nothing is taken from an iterator before its turn."""
    turns = deque(map(iter, hands))
    while turns:
        hand = turns.popleft()
        for item in hand:
            yield item
            turns.append(hand)
            break


class LinearProbe:
    """Scores encoders by how well a linear layer segments with their features.

    Args:
        data: from `labelled_slices`.
        device: where the encoders are.
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
        """Dice of a linear layer on the features, fitted on one part of the slices, on the other part.

        The forward runs in evaluation mode under the caller's autocast and leaves the encoder as it was. The maps of
        all stages are brought to the resolution of the third one (the last, if there are fewer), and a ridge
        regression with intercept predicts the share that each class has of each pixel there. Pixels are weighted by
        one over the square root of their class's share.

        Args:
            encoder: images (B, C, X, Y) to a list of maps, finest first, as nnU-Net's encoders do.

        Returns:
            0 to 1: Dice at full resolution, of each foreground class over all scored pixels, averaged over the classes
            that the scored slices have. NaN when they have none, or when the fitted features are not finite.
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
        """Weight (classes, features) and bias (classes,) fitted on the fit part."""
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
                # float32 within a chunk, float64 over all; on the CPU, as not every device has float64.
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
    """The maps of all stages, side by side at one resolution.

    Args:
        encoder: images to a list of maps, finest first.
        images: (B, C, X, Y).

    Returns:
        (B, channels of all stages, x, y) float32, x and y those of the third stage, or the last if there are fewer.
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
    """Ridge regression on standardised features with a free intercept, from weighted sums of products alone.

    Args:
        moments: (F + 1 + K, F + 1 + K) float64: Z^T W Z of rows z = (features - shift, 1, targets) and weights W.
        shift: (F,) float64, see there.

    Returns:
        Weight (K, F) and bias (K,) for features as they are, neither shifted nor standardised.
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
    """Build a probe on labelled slices of the training cases, where there are some.

    Args:
        folder: nnU-Net's preprocessed cases, of which the labelled ones are there.
        subjects: Subject of each case of the training side.
        patch_size: (X, Y) in pixels.
        labels: nnU-Net's label manager.
        device: Where the encoder is.

    Returns:
        The probe, or None; and what the log should say of it.
    """
    foreground = labels.foreground_labels
    if not foreground or labels.has_regions:
        return None, "No linear probe: this dataset has no labels, or regions."
    labelled = {
        case: subject
        for case, subject in subjects.items()
        if any((folder / f"{case}{ending}").is_file() for ending in PREPROCESSED)
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
