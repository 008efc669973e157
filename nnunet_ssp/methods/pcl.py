"""Positional contrastive learning: slices at nearly the same height of the heart shall look alike to the encoder.

Source: Zeng et al., "Positional contrastive learning for volumetric medical image segmentation" (MICCAI 2021), with
the settings of de Mooij, Pluim and Scannell, arXiv 2409.18100, section 2 and appendix A, and their published code,
which leaves out the original's factor T / 0.07.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nnunet_ssp.distributed import gather_rows
from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.simclr import SimCLR, SimCLRSettings
from nnunet_ssp.settings import require
from nnunet_ssp.slices.store import SliceStore


@dataclass(frozen=True)
class PCLSettings(SimCLRSettings):
    """The paper's settings."""

    batch_size: int = 64  # slices, two views each; appendix A
    weight_decay: float = 1e-5  # appendix A
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  # appendix A: no mixed precision
    threshold: float = 0.1  # positives are closer than this share of the stack; their code
    cyclic: bool = False  # whether base and apex count as neighbours; an option of their code, off
    # exact: in integers. run: in float32, as their code does, where rounding makes 4 of the 9 pairs of neighbours in a
    # stack of 10 slices closer than a tenth.
    arithmetic: Literal["exact", "run"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.threshold <= 1, "threshold", self.threshold, "lie in (0, 1]")


class PCL(SimCLR):
    """SimCLR with more positives: all views at nearly the same position in any frame of any subject."""

    settings_class = PCLSettings
    settings: PCLSettings
    curves = (*SimCLR.curves, "positives_per_view")
    paper = (
        "Zeng et al.: Positional contrastive learning for volumetric medical image segmentation. "
        "MICCAI (2021); settings of de Mooij, Pluim, Scannell, arXiv 2409.18100 (2024)"
    )

    def examine(self, store: SliceStore) -> list[str]:
        """Refuse slices without a position, and say where the threshold finds no neighbours.

        Raises:
            ValueError: a case is a single slice.
        """
        notes = super().examine(store)
        single = [n for n, c in zip(store.names, store.cases, strict=True) if c.n_slices < 2]
        if single:
            raise ValueError(
                f"{store.folder}: {single[0]} has a single slice ({len(single)} such case(s)). Positional contrastive "
                "learning needs the position of each slice in a stack; use -tr nnUNetTrainerSimCLRPretrain."
            )
        unknown = store.bases.count("unknown")
        if unknown:
            notes.append(
                f"WARNING: which end of the stack is the base is unknown for {unknown} of {len(store.bases)} cases "
                "(column `base` of cases.csv); their slices count as stored, first to last. If stacks differ in "
                "direction, positions of different subjects do not mean the same."
            )
        depths = np.array([case.n_slices for case in store.cases])
        alone = [n for n in np.unique(depths).tolist() if not self._has_neighbours(n)]
        if alone:
            notes.append(
                f"WARNING: threshold={self.settings.threshold} finds no neighbouring slices within "
                f"{int(np.isin(depths, alone).sum())} of {len(depths)} stacks, those of "
                f"{', '.join(map(str, alone))} slices: the positives of a view there are its twin and the views at its "
                "own position in other frames and, where stacks agree, in other subjects. Neighbours in a stack of n "
                f"slices need a threshold above 1/n, e.g. threshold={1.5 / max(alone):.2g}."
            )
        return notes

    def _has_neighbours(self, n_slices: int) -> bool:
        number = torch.arange(n_slices)
        return bool(
            self._near(torch.stack([number, torch.full_like(number, n_slices)], 1)).triu(1).any()
        )

    def positives(self, batch: Batch) -> Tensor:
        positions = batch.positions.to(batch.slices.device, non_blocking=True)
        positions = gather_rows(positions, batch.total)
        return self._near(positions).repeat(2, 2)

    def counts(self, positives: Tensor) -> dict[str, Tensor]:
        others = positives.sum(1, dtype=torch.float32).mean() - 1  # without itself
        return {"positives_per_view": others}

    def _near(self, positions: Tensor) -> Tensor:
        s = self.settings
        return near(positions, s.threshold, s.cyclic, s.arithmetic == "exact")


def near(positions: Tensor, threshold: float, cyclic: bool = False, exact: bool = True) -> Tensor:
    """Which slices are less than ``threshold`` apart, as shares of their stacks.

    Slice p of n lies at p / n. Exact: ``|p/n - q/m| < a/b`` is decided in integers, with the threshold as it is
    written: the float 0.1 is already more than a tenth, and would make all neighbours in a stack of 10 slices near.

    Args:
        positions: (N, 2) int64, number of each slice and the slices of its stack.
        threshold: in (0, 1].
        cyclic: distances run around the end of the stack, too.
        exact: False rounds as the code of de Mooij et al. does, in float32.

    Returns:
        (N, N) bool.
    """
    number, depth = positions.unbind(1)
    if exact:
        # To nine digits, so that products stay within int64; never 0: a view is near its twin.
        limit = max(Fraction(str(threshold)).limit_denominator(10**9), Fraction(1, 10**9))
        whole = depth[:, None] * depth
        distance = (number[:, None] * depth - number * depth[:, None]).abs()
        if cyclic:
            distance = torch.minimum(distance, whole - distance)
        return distance * limit.denominator < limit.numerator * whole
    share = number.float() / depth.float()
    gap = (share[:, None] - share).abs()
    if cyclic:
        gap = torch.minimum(gap, 1 - gap)
    return gap < threshold
