"""Dense pretraining: teach every point of a slice where it is, and whether it moves.

Two tasks on the maps of the planned decoder, which a U-Net trained on whole images leaves untouched:

* Contrast: a point of a slice is to be found again in another view of it, among other points of the same slice.
  Sources: Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with
  limited annotations" (NeurIPS 2020, https://arxiv.org/abs/2006.10511), section 3.2, the local loss; Pinheiro et al.,
  "Unsupervised learning of dense visual representations" (VADeR, NeurIPS 2020, https://arxiv.org/abs/2011.05499),
  whose positives are single points.
* Movement: from one frame, how much each pixel differs in another frame of the same slice. Between frames of a cine
  only the heart moves, so this asks where it is.

Sizes and weights are chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.distributed import sum_over_ranks, world_size
from nnunet_ssp.methods.base import Batch, Method, Pictures
from nnunet_ssp.methods.embedding import frame_sizes
from nnunet_ssp.methods.parts.depth import depth_warning
from nnunet_ssp.methods.parts.heads import mlp
from nnunet_ssp.methods.parts.losses import (
    coarse_weights,
    error_sums,
    masked_variance,
    point_contrast,
)
from nnunet_ssp.methods.parts.maps import at_points, decoder_maps
from nnunet_ssp.methods.parts.views import (
    BRIGHTNESS,
    BrightnessName,
    Views,
    ViewSettings,
    draw_centres,
    draw_views,
)
from nnunet_ssp.settings import PretrainingSettings, require

# Candidates drawn for each point; those outside a view or the slice are left out.
CANDIDATES = 8
# No error may be divided by less than this variance: frames that are copies of each other do not move.
SMALLEST_VARIANCE = 1e-4


@dataclass(frozen=True)
class DenseSettings(PretrainingSettings):
    """Settings of dense pretraining; chosen here."""

    # Slices, two views each.
    batch_size: int = 12
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "adamw"
    initial_lr: float = 1e-3
    weight_decay: float = 0.01
    # Weight of finding points again; 0 leaves it out.
    contrast: float = 1.0
    # Weight of the error in movement, as a share of its variance; 0 leaves it out, and one frame of a slice is enough.
    movement: float = 1.0
    # Points of each slice.
    points: int = 40
    # Decoder stages whose points are compared, from half of the resolution down.
    levels: int = 2
    # Width of the points' embeddings.
    head_width: int = 64
    temperature: float = 0.1
    # Other points are negatives from this distance on, as a share of the slice's longer side.
    apart: float = 0.04
    # Factors of brightness. meant: 0.6-1.5. run: 1.6-2.5, see SimCLR.
    brightness: BrightnessName = "meant"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contrast", "movement"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "not be negative")
        both = self.contrast + self.movement
        require(both > 0, "contrast + movement", both, "be positive: one of them must be learned")
        require(self.points >= 2, "points", self.points, "be at least 2")
        require(self.levels >= 1, "levels", self.levels, "be at least 1")
        require(self.head_width >= 1, "head_width", self.head_width, "be at least 1")
        require(self.temperature > 0, "temperature", self.temperature, "be positive")
        require(0 <= self.apart < 1, "apart", self.apart, "lie in [0, 1)")


class Dense(Method):
    """Find points of one view again in another, and tell from one frame what moves, with the whole planned U-Net."""

    settings_class = DenseSettings
    transfers = "encoder+decoder"
    reconstructs = True
    curves: ClassVar[tuple[str, ...]] = ("points_found", "error_over_variance")
    references: ClassVar[dict[str, tuple[float, str]]] = {
        "points_found": (0.0, "none found"),
        "error_over_variance": (1.0, "only the mean learned"),
    }
    second_frames_by = "movement"
    other_frames = True
    pictures = Pictures(
        "movement/epoch_{epoch:03d}.png",
        "{slices} slices after {epochs}",
        change=True,
        caption="movement: how much each pixel of the first view differs in another frame. output: what the network "
        "says of it, from the first view alone. Both have one grey scale.",
        own_scale="movement",
    )
    paper = (
        "Chaitanya, Erdil, Karani, Konukoglu: Contrastive learning of global and local features for medical image "
        "segmentation with limited annotations. NeurIPS (2020); movement of nnunet-ssp"
    )

    settings: DenseSettings

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        decoder: Any = network.decoder
        s, stages = settings, len(decoder.stages)
        if s.levels >= stages:
            raise ValueError(
                f"`levels` (={s.levels}) must be below the number of decoder stages (={stages})."
            )
        self.second_frames = s.movement > 0
        widths = [getattr(decoder.seg_layers[-1 - i], "in_channels") for i in range(stages)]  # noqa: B009
        self.heads = nn.ModuleList(
            mlp([widths[i], s.head_width, s.head_width]) for i in range(1, 1 + s.levels)
        )
        if not s.movement:  # nothing asks for the finest map and for the outputs
            for part in (decoder.stages[-1], decoder.transpconvs[-1], decoder.seg_layers):
                part.requires_grad_(False)
        if not s.contrast:
            self.heads.requires_grad_(False)

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw two views of each slice, and points that lie in both."""
        first_frame = frame_sizes(sizes)[:, 0]
        settings = ViewSettings(brightness=BRIGHTNESS[self.settings.brightness])
        centre = draw_centres(rng, first_frame, self.patch_size)
        first, second = (
            draw_views(rng, first_frame, self.channels, self.patch_size, settings, centre)
            for _ in range(2)
        )
        shares, places, found = draw_points(
            rng, (first, second), first_frame, self.patch_size, self.settings.points
        )
        longer = torch.from_numpy(first_frame.max(1)).float()[:, None, None]
        return {
            "first": first,
            "second": second,
            "points": shares,
            "places": places / longer,
            "found": found,
        }

    def view(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Make both views of some slices.

        Returns:
            Views (2n, C, *patch), all first, then all second; how much their pixels move (2n, C, *patch); where that is
            known (2n, 1, *patch), bool.
        """
        slices, sizes = batch.slices[rows], batch.sizes[rows]
        paired = slices.ndim == 5
        still, extent = (slices[:, 0], sizes[:, 0]) if paired else (slices, sizes)
        views = [batch.drawn[name][rows] for name in ("first", "second")]
        made = [self.make_views(still, extent, view, self.patch_size) for view in views]
        images, inside = (torch.cat(parts) for parts in zip(*made, strict=True))
        if not paired:
            return images, torch.zeros_like(images), torch.zeros_like(inside)
        moved = (slices[:, 0] - slices[:, 1]).abs()
        movement = torch.cat(
            [self.make_views(moved, extent, v.geometry(), self.patch_size)[0] for v in views]
        )
        # Frames of different sizes cannot be compared, and a slice with a single frame says nothing of movement.
        comparable = (sizes[:, 0] == sizes[:, 1]).all(1) & moved.flatten(1).any(1)
        return images, movement, inside & comparable.repeat(2)[:, None, None, None]

    def contrast_sums(self, maps: Sequence[Tensor], batch: Batch, rows: slice) -> Tensor:
        """Compare the points of both views at each level.

        Args:
            maps: Of the decoder, finest first, for the first views and then the second ones.
            batch: This rank's share.
            rows: Its slices that the maps show.

        Returns:
            (levels + 1, 2): loss and share of points found, summed over slices; last the number of slices, and 0.
        """
        points, places, found = (
            batch.drawn[name][rows].to(maps[0].device, non_blocking=True)
            for name in ("points", "places", "found")
        )
        near = torch.cdist(places, places) < self.settings.apart
        sums = []
        for head, level in zip(self.heads, maps[1:], strict=False):
            at = at_points(level.float(), points.transpose(0, 1).flatten(0, 1))
            first, second = F.normalize(head(at), dim=-1).chunk(2)
            losses = point_contrast(first, second, near, self.settings.temperature)
            sums.append(torch.stack([(value * found).sum() for value in losses]))
        sums.append(F.pad(found.sum()[None].float(), (0, 1)))
        return torch.stack(sums)

    def movement_sums(self, maps: Sequence[Tensor], target: Tensor, known: Tensor) -> Tensor:
        """Compare what each output layer says of the movement with area averages of it.

        Args:
            maps: (N, C, X, Y) of the decoder, finest first.
            target: (N, C, *patch).
            known: (N, 1, *patch), 1 where the movement is known.

        Returns:
            (outputs + 1, 2): squared error and number of pixels of each output; last those of each image's own mean.
        """
        decoder: Any = self.network.decoder
        outputs = [layer(x) for layer, x in zip(reversed(decoder.seg_layers), maps, strict=True)]
        errors = error_sums(outputs, target, known, known, known)[:-1]
        return torch.cat([errors, torch.stack(masked_variance(target, known))[None]])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        network: Any = self.network
        s, device = self.settings, batch.slices.device

        def sums_of(rows: slice) -> Tensor:
            images, movement, known = self.view(batch, rows)
            maps = decoder_maps(network.decoder, network.encoder(images))
            with torch.autocast(device.type, enabled=False):
                parts = [self.contrast_sums(maps, batch, rows)] if s.contrast else []
            if s.movement:
                parts.append(self.movement_sums(maps, movement, known.float()))
            return torch.cat(parts)

        sums = torch.stack(self.chunks.run(sums_of, len(batch), device)).sum(0)
        return self.means(sums)

    def means(self, sums: Tensor) -> dict[str, Tensor]:
        """Turn one rank's sums, of `contrast_sums` and then of `movement_sums`, into the loss and the metrics.

        Means are over the slices and pixels of the global batch: DDP averages gradients over ranks, hence the factor.
        """
        s, n = self.settings, world_size()
        found: dict[str, Tensor] = {}
        loss = sums.new_zeros(())
        if s.contrast:
            points, sums = sums[: s.levels + 1], sums[s.levels + 1 :]
            slices = (sum_over_ranks(points[-1, 0].detach()) / n).clamp_min(1e-6)
            contrast, hits = points[:-1].mean(0) / slices
            loss = loss + s.contrast * contrast
            found |= {"contrast": contrast, "points_found": hits}
        if s.movement:
            counts = (sum_over_ranks(sums[:, 1].detach()) / n).clamp_min(1e-6)
            variance = sum_over_ranks(sums[-1, 0].detach()) / n / counts[-1]
            errors = sums[:-1, 0] / counts[:-1]
            weights = errors.new_tensor(coarse_weights(len(errors)))
            share = (errors * weights).sum() / variance.clamp_min(SMALLEST_VARIANCE)
            loss = loss + s.movement * share
            found |= {"error": errors[0], "variance": variance}
        return {"loss": loss, **{name: value.detach() for name, value in found.items()}}

    @classmethod
    def summarise(cls, sums: dict[str, float]) -> dict[str, float]:
        nothing = float("nan")
        variance = sums.get("variance", 0.0)
        return {
            "points_found": sums.get("points_found", nothing),
            "error_over_variance": sums["error"] / variance if variance > 0 else nothing,
        }

    def warnings(
        self, curves: dict[str, float], change: Mapping[str, float] | None = None
    ) -> list[str]:
        warning = depth_warning(change or {}, "Consider a higher `contrast`, or more `levels`.")
        return [warning] if warning else []

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        network: Any = self.network
        images, movement, _ = self.view(batch, slice(0, len(batch)))
        first, second = images.chunk(2)
        shown = {"first view": first, "second view": second}
        if self.settings.movement:
            finest = decoder_maps(network.decoder, network.encoder(first))[0]
            output = network.decoder.seg_layers[-1](finest).float()
            shown |= {"movement": movement.chunk(2)[0], "output": output}
        return shown

    def compiled(self) -> list[nn.Module]:
        """Return encoder and decoder stages: the decoder's own `forward` is not called."""
        network: Any = self.network
        return [network.encoder, *network.decoder.stages]

    def extra_state(self) -> dict[str, Any]:
        """Return the heads, and the output layers: a segmentation network gets others."""
        network: Any = self.network
        outputs = network.decoder.seg_layers
        return {
            **super().extra_state(),
            **{f"outputs.{k}": v for k, v in outputs.state_dict().items()},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        network: Any = self.network
        outputs = network.decoder.seg_layers
        own = {k.removeprefix("outputs."): v for k, v in state.items() if k.startswith("outputs.")}
        outputs.load_state_dict(own)
        super().load_extra_state({k: v for k, v in state.items() if not k.startswith("outputs.")})


def draw_points(
    rng: np.random.Generator,
    views: tuple[Views, Views],
    sizes: NDArray[np.int64],
    patch_size: tuple[int, int],
    number: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points that lie in the slice and in both of its views, uniform over the first view.

    Where fewer are found, they are repeated: a repeated point is no negative of itself.

    Args:
        rng: Source of randomness; the number of draws does not depend on what is found.
        views: Two of each slice.
        sizes: (B, 2) rows and columns of each slice.
        patch_size: Rows and columns of the views.
        number: P below.

    Returns:
        (B, 2, P, 2) row and column in either view, as shares from -1 (first edge) to 1. (B, P, 2) pixel of the slice,
        counted from the centre of its first. (B,) bool, whether there are any.

    >>> rng, sizes = np.random.default_rng(0), np.array([[40, 50]] * 2)
    >>> views = draw_views(rng, sizes, 1, (32, 32), ViewSettings())
    >>> shares, places, found = draw_points(rng, (views, views), sizes, (32, 32), 3)
    >>> tuple(shares.shape), tuple(places.shape), found.tolist()
    ((2, 2, 3, 2), (2, 3, 2), [True, True])
    """
    n, half = len(sizes), np.asarray(patch_size) / 2
    first, second = (view.matrix.double().numpy() for view in views)
    share = rng.uniform(-1, 1, (n, number * CANDIDATES, 2))
    place = np.einsum("nij,npj->npi", first[..., :2], share * half) + first[:, None, :, 2]
    back = np.linalg.inv(second[..., :2])
    other = np.einsum("nij,npj->npi", back, place - second[:, None, :, 2]) / half
    inside = (place >= 0) & (place <= sizes[:, None] - 1) & (np.abs(other) <= 1)
    fits = inside.all(-1)
    found = fits.sum(1)
    order = np.argsort(~fits, axis=1, kind="stable")  # those that fit come first
    turn = np.arange(number) % np.clip(found, 1, None)[:, None]
    chosen = np.take_along_axis(order, turn, 1)[..., None]
    shares, others, places = (np.take_along_axis(x, chosen, 1) for x in (share, other, place))
    both = torch.from_numpy(np.stack([shares, others], 1)).float()
    return both, torch.from_numpy(places).float(), torch.from_numpy(found > 0)
