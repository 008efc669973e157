"""nnU-Net's own predictor, fed frame by frame from memory, with a number for its doubt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_ssp.files.atomic import TEMPORARY
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.nnunet import quiet
from nnunet_ssp.predict.model import TrainedModel


class Segmenter:
    """A loaded model."""

    def __init__(self, model: TrainedModel, device: str, mirror: bool, scratch: Path) -> None:
        """Load the weights of all folds.

        Args:
            model: The model, already checked.
            device: `cpu`, `cuda` or `mps`.
            mirror: Whether to average over mirrored images, as nnU-Net does by default.
            scratch: Folder for small temporary files.

        Raises:
            RuntimeError: The weights do not fit the plans, or the trainer is not installed here. No ValueError, which
                would be the fault of one subject.
        """
        self.scratch = scratch
        with quiet():
            self.predictor = DoubtingPredictor(
                use_mirroring=mirror, device=torch.device(device), allow_tqdm=False
            )
            try:
                self.predictor.initialize_from_trained_model_folder(
                    str(model.folder), tuple(model.folds), model.checkpoint
                )
            except (
                RuntimeError,
                LookupError,
                TypeError,
                AttributeError,
                ImportError,
                ValueError,
            ) as error:
                reason = str(error).splitlines()[0] if str(error) else repr(error)
                raise RuntimeError(
                    f"{model.folder}: nnU-Net cannot build the network of these plans with these weights ({reason})."
                ) from error

    @property
    def passes(self) -> int:
        """Passes of each window through a network: of the image, and of its mirrored copies."""
        axes = self.predictor.allowed_mirroring_axes if self.predictor.use_mirroring else None
        return int(2 ** len(axes or ()))

    def segment(self, voxels: Array, affine: Array) -> Iterator[tuple[Array, float]]:
        """Segment frames one by one, each as it is asked for; none depends on the others.

        Args:
            voxels: (X, Y, Z, T), slices on the third axis.
            affine: (4, 4), in mm, with orthogonal axes.

        Returns:
            For each frame its label values (X, Y, Z), and how far folds or mirrored images disagree, see
            `DoubtingPredictor.doubt`.

        Raises:
            RuntimeError: The plans' reader would read these voxels in another order.
        """
        properties = self._properties(voxels[..., 0], affine)
        return (self._segmented(frame, properties) for frame in np.moveaxis(voxels, -1, 0))

    def _segmented(self, frame: Array, properties: dict[str, Any]) -> tuple[Array, float]:
        self.predictor.forget()
        with quiet():
            labels = self.predictor.predict_single_npy_array(_as_read(frame), dict(properties))
        return labels.transpose(2, 1, 0), self.predictor.doubt()

    def _properties(self, frame: Array, affine: Array) -> dict[str, Any]:
        """Return what nnU-Net's own reader tells about a frame that `convert` writes, so that no rounding differs."""
        reader = self.predictor.plans_manager.image_reader_writer_class()
        with TemporaryDirectory(prefix=f"{TEMPORARY}-frame-", dir=self.scratch) as folder:
            file = Path(folder, "frame_0000.nii.gz")
            write_nifti(file, frame, affine)
            image, properties = reader.read_images((str(file),))
        if not np.array_equal(image, _as_read(frame)):
            name = type(reader).__name__
            raise RuntimeError(
                f"`image_reader_writer` (={name}) of the plans must keep the order of the voxels, as SimpleITKIO does."
            )
        return properties


def _as_read(frame: Array) -> Array:
    """Return a frame (X, Y, Z) as nnU-Net's readers do: (1, Z, Y, X), float32."""
    return np.ascontiguousarray(frame.transpose(2, 1, 0)[None], dtype=np.float32)


class DoubtingPredictor(nnUNetPredictor):
    """nnU-Net's predictor, which also counts the voxels on which its parts disagree; its labels stay what they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.forget()

    def forget(self) -> None:
        """Begin a frame."""
        self._differing: Tensor | int = 0
        self._heart: Tensor | int = 0
        self._folds: list[Tensor] = []

    def doubt(self) -> float:
        """Return the disagreement on the last frame, in %.

        With several folds each is compared with their mean. With one fold its prediction is compared with the mean over
        mirrored images. Of the voxels that either calls heart, it is the part on which they differ. NaN where there is
        no heart, or nothing to compare.
        """
        heart = int(self._heart)
        return 100 * int(self._differing) / heart if heart else float("nan")

    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """See nnU-Net; compares the folds with their mean."""
        logits = super().predict_logits_from_preprocessed_data(data)
        mean = self._decided(logits)
        while self._folds:
            self._compare(self._folds.pop(), mean)
        return logits

    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """See nnU-Net; called once for each fold."""
        logits = super().predict_sliding_window_return_logits(input_image)
        if len(self.list_of_parameters) > 1:
            self._folds.append(self._decided(logits).cpu())
        return logits

    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        if len(self.list_of_parameters) > 1 or not self.use_mirroring:
            return super()._internal_maybe_mirror_and_predict(x)
        seen: list[Tensor] = []

        def keep_first(*call: Any) -> None:
            if not seen:  # the image as it is; nnU-Net adds the mirrored ones to this tensor
                seen.append(self._decided(call[2][0]))

        hook = self.network.register_forward_hook(keep_first)
        try:
            mean = super()._internal_maybe_mirror_and_predict(x)
        finally:
            hook.remove()
        if self.allowed_mirroring_axes:
            self._compare(seen[0], self._decided(mean[0]))
        return mean

    def _decided(self, logits: Tensor) -> Tensor:
        """Return labels (1, ...), or of regions, which may overlap, whether each is there (C, ...)."""
        return logits > 0 if self.label_manager.has_regions else logits.argmax(0, keepdim=True)

    def _compare(self, one: Tensor, other: Tensor) -> None:
        self._differing = self._differing + (one != other).any(0).sum()
        self._heart = self._heart + ((one > 0) | (other > 0)).any(0).sum()
