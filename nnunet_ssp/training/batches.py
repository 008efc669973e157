"""Batches from the slice store: slices and random draws of each step, and the fixed batches of the validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from nnunet_ssp.distributed import share, world_size
from nnunet_ssp.files.lock import locked
from nnunet_ssp.methods.base import Batch
from nnunet_ssp.settings import PretrainingSettings
from nnunet_ssp.slices.drawing import (
    DRAW,
    FRAME,
    VALIDATION,
    SameSlice,
    SliceReader,
    SliceStore,
    batch_indices,
    fits_on_device,
    random_stream,
)
from nnunet_ssp.slices.store import (
    follow_preprocessed,
    preprocessing_of,
    require_preprocessing,
)

VALIDATION_SLICES = 256  # at most, where no setting says how many; fixed for the whole run
SHOWN_SLICES = 6  # rows of a picture


class Draws(Protocol):
    """The part of a method that batches need, see `Method`."""

    smallest_batch: ClassVar[int]
    second_frames: bool
    second_frames_by: ClassVar[str]
    other_frames: ClassVar[bool]
    centres: NDArray[np.float64] | None

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw everything random about a batch, on the host."""


def ensure_store(trainer: Any) -> None:
    """Check that a pretraining's plans made its slice store; for a plain nnU-Net dataset, build or update it first.

    Args:
        trainer: A `PretrainingTrainer`.

    Raises:
        ValueError: The store is missing, or of other plans.
    """
    manager = trainer.configuration_manager
    preprocessing = preprocessing_of(trainer.plans_manager.plans, manager.configuration)
    if trainer.local_rank == 0 and not trainer.cases:
        base = Path(trainer.preprocessed_dataset_folder_base)
        folder = Path(trainer.preprocessed_dataset_folder)
        saying = f"{base} is in use by another process: waiting for it"
        with locked(base, wait=math.inf, saying=saying):
            if follow_preprocessed(trainer.store_folder, folder, preprocessing):
                trainer.print_to_log_file(
                    f"Built the slice store {trainer.store_folder} from {folder}"
                )
            if isinstance(trainer.fold, int):
                trainer.folds()  # nnU-Net writes missing ones
    if trainer.is_ddp:
        dist.barrier()
    require_preprocessing(trainer.store_folder, preprocessing)


class Batches:
    """Draw a run's batches from its slice store, independently of the number of ranks.

    Args:
        method: Draws what is random about a batch, see `Method.draw`.
        settings: Batch size, seed, steps per epoch and where slices are kept.
        store: Slices to train on.
        validation: Slices of the validation loss; None takes those to train on.
        subject_of: Returns the subject of a case, to find its other frames.
        device: Device that uses the batches.

    Attributes:
        per_epoch: Steps of an epoch.
        validates_on: `validation` or `training`, the slices of the validation loss.
        centres: (cases, 2) where crops lie, as shares of rows and columns from the first edge, NaN for none. None
            leaves all to the method.

    Raises:
        ValueError: The batch exceeds the data, has too few slices for the ranks, or finds no second frames.
    """

    def __init__(
        self,
        method: Draws,
        settings: PretrainingSettings,
        store: SliceStore,
        validation: SliceStore | None,
        subject_of: Callable[[str], str],
        device: torch.device,
    ) -> None:
        self.method, self.settings, self.device = method, settings, device
        self.store, self._subject_of = store, subject_of
        self.centres: NDArray[np.float64] | None = None
        self._shown = store if validation is None else validation
        self.validates_on = "training" if validation is None else "validation"
        n, size = len(store), settings.batch_size
        batch_indices(settings.seed, 0, n, size)  # refuses a batch larger than the data
        if size < world_size():
            raise ValueError(
                f"`batch_size` (={size}) must be at least the number of processes (={world_size()})."
            )
        self.per_epoch = settings.iterations_per_epoch or n // size
        # Every rank needs a slice of every batch, some methods more than one; too few slices are repeated.
        smallest = max(method.smallest_batch, world_size())
        wanted = settings.val_iterations_per_epoch
        most = VALIDATION_SLICES if wanted is None else wanted * size
        number = max(min(len(self._shown), most), smallest)
        self.fixed = np.linspace(0, len(self._shown) - 1, number).round().astype(np.int64)
        self.frames = self._frames_of(store)
        if self.frames is not None and self.frames.counts.max(initial=0) < 2:
            name = method.second_frames_by
            raise ValueError(
                f"`{name}` (={getattr(settings, name)}) must find several frames of a subject, but no slice has a "
                "second frame. cases.csv or the setting subject_pattern says which cases show one subject."
            )

    # -- training ----------------------------------------------------------------------------------

    def training(self, first: int) -> Iterator[Batch]:
        """Return this rank's share of each step's batch, without end.

        Args:
            first: Step to begin with, counted from 0 over the whole run.
        """
        kept = self.settings.data_device
        on_device = kept == "device" or (kept == "auto" and fits_on_device(self.store, self.device))
        # Made now, before other batches take memory of the device.
        return self._training(first, SliceReader(self.store, self.device, on_device))

    def _training(self, first: int, reader: SliceReader) -> Iterator[Batch]:
        own = share(self.settings.batch_size)
        canvases = reader.steps(self.indices(step)[own] for step in count(first))
        for step, slices in enumerate(canvases, first):
            # Drawn for the global batch on every rank, so that the number of ranks changes nothing.
            rng = random_stream(self.settings.seed, DRAW, step)
            part = self._drawn(self.store, self.indices(step), rng).share(own)
            if self.device.type == "cuda":
                part = part.pinned()
            part.slices, part.sizes = slices, part.sizes.to(self.device, non_blocking=True)
            yield part

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the numbers of a step's slices: (B,), or (B, 2) with second frames."""
        seed = self.settings.seed
        indices = batch_indices(seed, step, len(self.store), self.settings.batch_size)
        return self._with_frames(self.frames, indices, random_stream(seed, FRAME, step))

    def cases_of(self, step: int) -> list[str]:
        """Return the names of the cases whose slices a step draws."""
        numbers = self.store.case_of[self.indices(step).reshape(-1)]
        return sorted({self.store.names[number] for number in numbers})

    # -- validation and pictures -------------------------------------------------------------------

    def n_validation(self) -> int:
        """Return the number of validation batches, whose sizes differ by at most one slice."""
        return max(1, len(self.fixed) // self.settings.batch_size)

    def validation(self) -> Iterator[Batch]:
        """Return this rank's share of the fixed batches in an endless cycle."""
        parts = np.array_split(self.fixed, self.n_validation())
        made = [
            self._fixed_batch(part, i + 1).share(share(len(part))) for i, part in enumerate(parts)
        ]
        return cycle(made)

    def pictured(self) -> Batch:
        """Return the slices that pictures show, `SHOWN_SLICES` at most."""
        chosen = self.fixed[:: max(1, len(self.fixed) // SHOWN_SLICES)][:SHOWN_SLICES]
        return self._fixed_batch(chosen, 0)

    def _fixed_batch(self, indices: NDArray[np.int64], number: int) -> Batch:
        """Make a batch that is the same in every epoch and every run with this seed."""
        rng = random_stream(self.settings.seed, VALIDATION, number)
        indices = self._with_frames(self._frames_of(self._shown), indices, rng)
        batch = self._drawn(self._shown, indices, rng)
        batch.slices = self._shown.read(indices).to(self.device)
        batch.sizes = batch.sizes.to(self.device)
        return batch

    # -- both --------------------------------------------------------------------------------------

    def _frames_of(self, store: SliceStore) -> SameSlice | None:
        """Return the lookup of second frames for a method that uses them, else None."""
        if not self.method.second_frames:
            return None
        return SameSlice(store, [self._subject_of(case) for case in store.names])

    def _with_frames(
        self, frames: SameSlice | None, indices: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        if frames is None:
            return indices
        return np.stack([indices, frames.draw(rng, indices, self.method.other_frames)], 1)

    def _centres(self, store: SliceStore, indices: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Return the centre of each image's crops in pixels, NaN for none; validation slices have none."""
        if self.centres is None or store is not self.store:
            return None
        first = indices if indices.ndim == 1 else indices[:, 0]
        shares = self.centres[store.case_of[first]]
        return np.asarray(shares * store.sizes[first] - 0.5)

    def _drawn(
        self, store: SliceStore, indices: NDArray[np.int64], rng: np.random.Generator
    ) -> Batch:
        """Return a global batch with everything but its pixels."""
        sizes = store.sizes[indices]
        positions = store.positions[indices if indices.ndim == 1 else indices[:, 0]]
        nothing = torch.empty(len(indices), 0)
        self.method.centres = self._centres(store, indices)
        drawn = self.method.draw(rng, sizes)
        return Batch(nothing, torch.from_numpy(sizes), drawn, torch.from_numpy(positions))
